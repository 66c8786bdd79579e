"""`smalti generate` with a picture of which a part is kept."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from harness.gateway_calls import mask_file
from smalti.cli import run
from smalti.registry.folder import ModelFolder

Generate = Callable[..., tuple[int, str]]


@pytest.fixture
def generate(tiny: ModelFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Generate:
    """Draws two pictures in an empty folder with the tiny model; returns (status, standard error)."""
    Image.new("RGB", (32, 32), "red").save(tmp_path / "cat.png")
    (tmp_path / "hole.png").write_bytes(mask_file(32))
    (tmp_path / "small.png").write_bytes(mask_file(16))

    def call(*arguments: str) -> tuple[int, str]:
        files = [str(tmp_path / each) if each.endswith(".png") else each for each in arguments]
        common = ["--n", "2", "--candidates", "2", "--no-grid", "--seed", "3", "--model", str(tiny.path)]
        status = run(["generate", "a hat", *files, *common, "--out", str(tmp_path / "out")])
        return status, capsys.readouterr().err

    return call


def test_draws_under_a_mask_and_varies(generate: Generate, tmp_path: Path) -> None:
    assert generate("--image", "cat.png", "--mask", "hole.png") == (0, "")
    edited = {path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert len(edited) == 2
    assert generate("--image", "cat.png", "--strength", "0.5") == (0, "")
    assert generate("--image", "cat.png", "--keep-rows", "2") == (0, "")
    assert len({path.read_bytes() for path in (tmp_path / "out").iterdir()}) == 6


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--mask", "hole.png"], "image: is missing; --mask needs a picture"),
        (["--image", "cat.png"], "keep_rows: must be set for an initial image"),
        (["--image", "none.png", "--mask", "hole.png"], "image: "),
        (["--image", "cat.png", "--mask", "none.png"], "mask: "),
        (["--image", "cat.png", "--mask", "small.png"], "mask: has 16 x 16 pixels"),
        (["--image", "cat.png", "--strength", "2"], "strength: must be greater than 0"),
    ],
)
def test_wrong_options_are_named(generate: Generate, arguments: list[str], problem: str) -> None:
    status, error = generate(*arguments)
    assert status == 2
    assert problem in error
    assert error.count("\n") == 1
