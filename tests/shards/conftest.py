"""The engines of a tiny model with words and a refiner, in this process."""

from collections.abc import Iterator

import pytest

from smalti.pipeline import Pipeline
from smalti.registry.folder import ModelFolder


@pytest.fixture(scope="session")
def worded_pipeline(worded: ModelFolder) -> Iterator[Pipeline]:
    """The tiny model with words, loaded."""
    with Pipeline.load(worded.path, slots=8) as loaded:
        yield loaded
