"""The page on batches is true: each of its examples runs on the output of a batch."""

import re
from pathlib import Path

import pytest

from harness.paths import DOCS
from smalti.cli import run
from smalti.registry.folder import ModelFolder

PAGE = (DOCS / "batches.md").read_text(encoding="utf-8")
EXAMPLES = list(re.finditer(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))


@pytest.mark.slow
# webdataset leaves files open.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_examples_read_a_batch(
    tiny: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    Path("prompts.txt").write_text("a fox\na cat\n")
    options = ["--n", "1", "--candidates", "2", "--model", str(tiny.path)]
    assert run(["batch", "prompts.txt", "--out", "pictures", *options]) == 0
    for example in EXAMPLES:
        # Lines of a traceback are those of the page.
        above = "\n" * PAGE.count("\n", 0, example.start(1))
        exec(compile(above + example[1], str(DOCS / "batches.md"), "exec"), {})
    assert len(EXAMPLES) == 3
    output = capsys.readouterr().out
    assert "000000001-0 a cat (32, 32)" in output
    assert "a fox (32, 32)" in output
    assert "2 0" in output
