"""Real pictures that an evaluation compares with: of the same prompts, and of training."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from jaxtyping import UInt8

from smalti.errors import InvalidInputError
from smalti.training.data.world.attributes import Attributes
from smalti.training.data.world.composition import CompositionDataset, World, compose, draw_attributes
from smalti.training.evaluation.questions import Question

_SEED = 7
"""Seed of the real pictures; no run of the recipe has it."""
_MAX_DRAWS = 10_000
_BATCH = 256


def training_pictures(world: World, count: int) -> Iterator[UInt8[np.ndarray, "pictures side side 3"]]:
    """Yields real pictures of the split `train` in batches."""
    pictures = CompositionDataset(world, _SEED, "train")
    for start in range(0, count, _BATCH):
        yield pictures.batch(start, min(_BATCH, count - start))[0]


def pictures_of(
    world: World, question: Question, first: int, count: int
) -> UInt8[np.ndarray, "pictures side side 3"]:
    """Composes real pictures of a prompt: what it names is as it says, and the rest as training draws it.

    Args:
        world: the world, at the resolution of the pictures.
        question: the prompt.
        first: number of the first draw to try; other numbers give other pictures.
        count: number of pictures.

    Raises:
        InvalidInputError: the world never draws pictures of this form.
    """
    composed = []
    for index in range(first, first + _MAX_DRAWS):
        drawn = draw_attributes(world, _SEED, index)
        attributes = replace(drawn, figures=question.figures, background=question.background)
        if _has_form(drawn, question) and world.is_visible(attributes):
            composed.append(compose(world, attributes))
            if len(composed) == count:
                return np.stack(composed)
    raise InvalidInputError("world", f"never draws a picture like that of {question.prompt!r}")


def _has_form(drawn: Attributes, question: Question) -> bool:
    """Returns whether a picture has the form that a prompt names, whatever its figures and background are."""
    return (
        len(drawn.figures) == len(question.figures)
        and drawn.size == question.size
        and drawn.count == question.count
        and drawn.relation == question.relation
        and drawn.pose == "upright"
    )
