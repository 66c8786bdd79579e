"""Batches that are made ahead of time, by a thread or by other processes."""

import os
from functools import partial

import numpy as np
import pytest

from harness.paths import SAMPLES
from smalti.errors import SmaltiError
from smalti.training.batches.sources import ComposedPictures
from smalti.training.data.world.composition import World
from smalti.training.data.world.description import load_description
from smalti.training.data.world.sprites import make_sprites
from smalti.training.prefetching import Prefetched


def _square(offset: int, number: int) -> tuple[int, int]:
    return number**2 + offset, os.getpid()


def _end(number: int) -> int:
    os._exit(number)


@pytest.mark.parametrize("processes", [0, 2])
def test_values_are_those_of_the_function_in_any_order(processes: int) -> None:
    prefetched = Prefetched(partial(_square, 5), processes)
    numbers = [3, 4, 5, 6, 2, 9, 10]
    results = [prefetched(number) for number in numbers]
    assert [value for value, _ in results] == [number**2 + 5 for number in numbers]
    elsewhere = os.getpid() not in {process for _, process in results}
    assert elsewhere == bool(processes)


def test_a_lost_process_is_reported() -> None:
    with pytest.raises(SmaltiError, match="--resume"):
        Prefetched(_end, 1)(1)


def test_another_process_composes_the_same_pictures() -> None:
    description = load_description(SAMPLES / "world.json")
    pictures = ComposedPictures(
        World(description, make_sprites(SAMPLES / "packages", description, 64)), seed=3
    )
    batch = partial(pictures.batch, count=5)
    np.testing.assert_array_equal(Prefetched(batch, 1)(7), batch(7))
