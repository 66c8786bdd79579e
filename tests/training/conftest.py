"""What the tests of training share: a small world and its data, a tokenizer, and the runs of the three trainers."""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import pytest

from harness.paths import SAMPLES
from smalti.cli import run
from smalti.models import vqgan
from smalti.models.vqgan import VQGAN
from smalti.testing.model import TINY_VQGAN_64
from smalti.training.data.world.building import build
from smalti.training.data.world.composition import World
from smalti.training.data.world.description import load_description
from smalti.training.data.world.sprites import make_sprites

if TYPE_CHECKING:
    import torch

ROOM = Path(__file__).parent
TRAINS = [
    ROOM / name
    for name in ("trainers", "losses", "loop", "judge", "evaluation", "test_commands.py", "test_export.py")
]
"""What trains, if only for a few steps; the other folders make data and batches."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what trains as `training`."""
    for item in items:
        if any(item.path.is_relative_to(each) for each in TRAINS):
            item.add_marker("training")


@pytest.fixture(scope="session")
def world() -> World:
    """The world of `tests/data`, with its sprites."""
    description = load_description(SAMPLES / "world.json")
    return World(description, make_sprites(SAMPLES / "packages", description, 64))


@pytest.fixture(scope="session")
def network() -> VQGAN:
    """An untrained image tokenizer for pictures of the world."""
    return VQGAN(TINY_VQGAN_64, vqgan.initialize(TINY_VQGAN_64, jax.random.key(0)))


@pytest.fixture(scope="session")
def world_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the world of `tests/data`; tests must not change it."""
    out = tmp_path_factory.mktemp("data") / "sample"
    build(out, SAMPLES / "packages", load_description(SAMPLES / "world.json"), 64, with_pictograms=False)
    return out


@pytest.fixture(scope="session")
def runs(world_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of runs `tokenizer`, `generator` and `ranker`, three steps each; tests must not change it."""
    folder = tmp_path_factory.mktemp("runs")
    tokenizer = str(folder / "tokenizer")
    options = {"tokenizer": [], "generator": ["--tokenizer", tokenizer], "ranker": ["--vqgan", tokenizer]}
    for name, more in options.items():
        paths = ["--config", SAMPLES / "runs" / f"{name}.toml", "--data", world_data, "--out", folder / name]
        assert run(["train", name, *map(str, paths), *more]) == 0
    return folder


@pytest.fixture(scope="session")
def thin_vgg() -> "dict[str, torch.Tensor]":
    """A VGG16 of torchvision's layout with few channels and random weights; tests must not change it."""
    import torch

    generator = torch.Generator().manual_seed(0)
    stages = {4: (0, 2), 6: (5, 7), 8: (10, 12, 14), 5: (17, 19, 21), 7: (24, 26, 28)}
    state, channels = {"classifier.0.weight": torch.zeros(2, 2)}, 3
    for width, indices in stages.items():
        for index in indices:
            state[f"features.{index}.weight"] = torch.randn(width, channels, 3, 3, generator=generator) * 0.3
            state[f"features.{index}.bias"] = torch.randn(width, generator=generator) * 0.1
            channels = width
    return state


@pytest.fixture(scope="module")
def orbax_leftovers() -> Iterator[None]:
    """Collects the coroutines that orbax abandons when a read or write fails, and that warn when they are collected.

    A module that uses it ignores `pytest.PytestUnraisableExceptionWarning`, so the warnings fail no test elsewhere.
    """
    yield
    gc.collect()
