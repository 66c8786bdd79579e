"""`smalti up` with two models that share a VQGAN and CLIP: jobs for both succeed, with one decoder and one ranker."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness.paths import ROOT
from smalti.pictures import load_drawing
from smalti.testing.model import tiny_model

pytestmark = [pytest.mark.server, pytest.mark.process]

PAGE = (ROOT / "docs" / "up.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("## Several models")[2].partition("\n## ")[0]


def block(language: str) -> str:
    """Returns the first block of the page's section on several models."""
    found = re.search(rf"```{language}\n(.*?)```", SECTION, re.DOTALL)
    assert found
    return found[1]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_example_of_the_page_draws_with_both_models(tmp_path: Path) -> None:
    models = {
        name: tiny_model(tmp_path / "models" / name, seed=seed, pictures_seed=5)
        for name, seed in (("one", 1), ("two", 2))
    }
    (tmp_path / "example.py").write_text(block("python"), encoding="utf-8")
    program, *options = block("sh").split()
    assert program == "smalti"
    options += ["--ports", "free", "--data", str(tmp_path / "data")]
    done = subprocess.run(
        [sys.executable, "-m", "smalti", *options, "--", sys.executable, "example.py"],
        cwd=tmp_path,
        env={**os.environ, "SMALTI_MODELS": str(tmp_path / "models"), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=550,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name, model in models.items():
        drawing = load_drawing(tmp_path / f"{name}.png")
        assert drawing is not None
        assert (drawing.model, drawing.revision) == (name, model.revision)
    logs = {file.stem for file in (tmp_path / "data" / "logs").glob("*.log")}
    assert {"encoder", "encoder-2", "generator", "generator-2", "decoder", "ranker", "refiner"} <= logs
    assert not {"decoder-2", "ranker-2", "refiner-2"} & logs
