"""Settings of an import."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from smalti.training.checked_files import check_fields, load_toml
from smalti.training.data.near_duplicates import MAX_COLOUR_DISTANCE, MAX_HASH_DISTANCE
from smalti.validation import Strict

Share = Annotated[float, Field(ge=0, lt=1)]


class ImportSettings(Strict):
    """Settings for cleaning, comparing and splitting imported pictures."""

    resolution: int = Field(default=256, ge=16, le=1024)
    """Side of the stored pictures: the short side is scaled to it, and the middle is kept."""
    smallest_side: int = Field(default=64, ge=1)
    """Pictures with a shorter side, in pixels, are dropped."""
    longest_shape: float = Field(default=3.0, ge=1)
    """Maximal ratio of the long side to the short one; longer pictures are dropped."""
    longest_caption: int = Field(default=300, ge=1)
    """Maximal number of characters; a longer caption is cut between words."""
    keep_near_duplicates: bool = True
    """Whether near copies are kept, all in one split; otherwise only the first of them is."""
    farthest_hash: int = Field(default=MAX_HASH_DISTANCE, ge=0, le=64)
    """Maximal number of bits, of 64, in which the difference hashes of near copies differ."""
    farthest_colour: float = Field(default=MAX_COLOUR_DISTANCE, ge=0, le=1)
    """Maximal difference of the thumbnails of near copies: root mean square, colours in [0, 1]."""
    validation: Share = 0.02
    """Share of the pictures held out for validation; 0 makes no such split."""
    test: Share = 0.0
    """Share of the pictures held out for a final test; 0 makes no such split."""
    seed: int = Field(default=0, ge=0)
    """Seed of the split."""

    @model_validator(mode="after")
    def _something_is_left(self) -> "ImportSettings":
        if self.validation + self.test >= 1:
            raise ValueError("validation and test must add up to less than 1, to leave pictures to train on")
        return self

    @property
    def shares(self) -> dict[str, float]:
        """Shares of the requested splits other than "train"."""
        requested = {"validation": self.validation, "test": self.test}
        return {split: share for split, share in requested.items() if share}


def load_import_settings(path: Path) -> ImportSettings:
    """Loads the settings of an import from a TOML file.

    Raises:
        InvalidInputError: the file cannot be read, has an unknown key or a wrong value.
    """
    return check_fields(path, ImportSettings, load_toml(path))
