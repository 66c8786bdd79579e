"""The settings of an import."""

import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError, model_validator

from smalti.errors import InvalidInputError
from smalti.training.data.near_duplicates import FARTHEST_COLOUR, FARTHEST_HASH
from smalti.training.data.world.description import problem_of
from smalti.validation import Strict

Share = Annotated[float, Field(ge=0, lt=1)]


class ImportSettings(Strict):
    """How pictures from outside are cleaned, compared and split."""

    resolution: int = Field(default=256, ge=16, le=1024)
    """The side of the stored pictures: the short side is scaled to it, the middle is kept."""
    smallest_side: int = Field(default=64, ge=1)
    """Pictures whose short side has fewer pixels are dropped."""
    longest_shape: float = Field(default=3.0, ge=1)
    """Pictures whose long side is more than so many short sides are dropped."""
    longest_caption: int = Field(default=300, ge=1)
    """Characters; a longer caption is cut between words."""
    keep_near_duplicates: bool = True
    """Whether near copies stay, all on one side of the split, or only the first of them does."""
    farthest_hash: int = Field(default=FARTHEST_HASH, ge=0, le=64)
    """How many of 64 bits the difference hashes of near copies may differ in."""
    farthest_colour: float = Field(default=FARTHEST_COLOUR, ge=0, le=1)
    """How far the thumbnails of near copies may differ: root mean square, colours in [0, 1]."""
    validation: Share = 0.02
    """The share of pictures held back for validation; 0 makes no such split."""
    test: Share = 0.0
    """The share of pictures held back for a last test; 0 makes no such split."""
    seed: int = Field(default=0, ge=0)
    """Another seed, another split."""

    @model_validator(mode="after")
    def _something_is_left(self) -> "ImportSettings":
        if self.validation + self.test >= 1:
            raise ValueError("validation and test together leave nothing to train on")
        return self

    @property
    def shares(self) -> dict[str, float]:
        """The shares of the splits beside "train" that are asked for."""
        asked = {"validation": self.validation, "test": self.test}
        return {split: share for split, share in asked.items() if share}


def read_import_settings(path: Path) -> ImportSettings:
    """Reads settings from a TOML file.

    Raises:
        InvalidInputError: the file cannot be read, has an unknown key or a wrong value.
    """
    try:
        return ImportSettings.model_validate(tomllib.loads(path.read_text("utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidInputError(str(path), f"cannot be read as TOML ({error})") from None
    except ValidationError as error:
        raise problem_of(path, error) from None
