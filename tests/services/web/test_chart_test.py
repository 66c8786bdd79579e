"""The script of `helm test` draws through a web service, and says what is wrong."""

import os
import subprocess
import sys

import pytest

from harness.paths import ROOT
from harness.web import WebHarness

pytestmark = pytest.mark.process

SCRIPT = ROOT / "deploy" / "helm" / "smalti" / "files" / "draw.py"


def draw(url: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "URL": url, "SECONDS": "60"}
    environment.pop("SMALTI_SECRETS", None)
    return subprocess.run(
        [sys.executable, SCRIPT], env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_script_draws_through_the_web_service(web: WebHarness) -> None:
    done = draw(web.url)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("a picture of ")


def test_script_fails_if_nobody_answers() -> None:
    done = draw("http://127.0.0.1:9")
    assert done.returncode != 0
    assert "refused" in done.stderr.lower()
