"""The page with the whole system and the shipped model: nine pictures grow, and become the picture of the README."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from harness.paths import ROOT
from harness.processes import started

pytestmark = [pytest.mark.server, pytest.mark.process, pytest.mark.slow]

MAX_BYTES = 250_000
SECONDS = 500


def test_nine_pictures_grow_in_a_real_browser(tmp_path: Path) -> None:
    out = tmp_path / "page.webp"
    command: list[str | Path] = [sys.executable, "-m", "smalti", "up", "--ports", "free"]
    command += ["--data", tmp_path / "data", "--", "python", "-m", "scripts.page_picture", "--out", out]
    with started(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, output
    with Image.open(out) as picture:
        assert picture.width == 2400
    assert out.stat().st_size < MAX_BYTES
    shown = ROOT / "docs" / "pictures" / "page.webp"
    assert shown.stat().st_size < MAX_BYTES
