"""Fixtures that several rooms of the training tests share."""

import jax
import pytest

from harness.paths import SAMPLES
from smalti.models import vqgan
from smalti.models.vqgan import VQGAN
from smalti.testing.model import TINY_VQGAN_64
from smalti.training.data.world.composition import World
from smalti.training.data.world.description import load_description
from smalti.training.data.world.sprites import make_sprites


@pytest.fixture(scope="session")
def world() -> World:
    description = load_description(SAMPLES / "world.json")
    return World(description, make_sprites(SAMPLES / "packages", description, 64))


@pytest.fixture(scope="session")
def network() -> VQGAN:
    return VQGAN(TINY_VQGAN_64, vqgan.initialize(TINY_VQGAN_64, jax.random.key(0)))
