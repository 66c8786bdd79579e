"""The examples of docs/http.md run: those for Python, for the shell, and for Node.js."""

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from harness.gateway_calls import mask_file
from harness.paths import DOCS
from harness.web import SIZE, WebHarness, picture_file

ADDRESS = "http://127.0.0.1:8080"
"""The address of the service in the examples."""
SECONDS = 60.0


def examples(language: str) -> list[str]:
    """Returns the examples in a language, as the page shows them."""
    page = (DOCS / "http.md").read_text(encoding="utf-8")
    found = re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert found
    return found


@pytest.fixture(scope="module")
def with_batches() -> bool:
    return True


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the examples run, with the files that they name."""
    (tmp_path / "cat.png").write_bytes(picture_file(1, 1))
    (tmp_path / "hole.png").write_bytes(mask_file(SIZE))
    (tmp_path / "requests.jsonl").write_text(examples("json")[0])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_commands(web: WebHarness, folder: Path) -> None:
    answers: list[str] = []
    for command in "\n".join(examples("shell")).replace("\\\n", " ").split("\n"):
        if not command:
            continue
        assert ADDRESS in command
        job = json.loads(answers[-1]).get("id", "") if answers else ""
        words = shlex.split(command.replace(ADDRESS, web.url).replace("/JOB/", f"/{job}/"))
        words[1:1] = ["--silent", "--show-error", "--fail"]
        done = subprocess.run(words, cwd=folder, check=True, timeout=SECONDS, capture_output=True, text=True)
        answers.append(done.stdout)
    drawn, _, events = answers
    assert json.loads(drawn)["data"][0]["url"].startswith(f"{web.url}/v1/images/")
    assert '"state":"succeeded"' in events
    assert web.states() == ["succeeded", "succeeded"]


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning", "ignore:unclosed file:ResourceWarning")
def test_code_for_python(web: WebHarness, folder: Path) -> None:
    names: dict[str, Any] = {}
    for example in examples("python"):
        exec(example.replace(ADDRESS, web.url), names)
    with names["client"]:
        counts = [len(names[answer].data) for answer in ("pictures", "edited", "varied")]
    assert counts == [9, 1, 4]
    assert [json.loads(each)["custom_id"] for each in names["answers"]] == ["1"]
