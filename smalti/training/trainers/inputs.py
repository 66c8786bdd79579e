"""The inputs of a training run, and their copies in its folder.

A run keeps the tokenizers that it is trained with, so that it can be resumed and exported without their originals:

vqgan/    the image tokenizer; of a tokenizer's run, the one that it started from
text/     the text tokenizer, learned from the captions
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from smalti.outputs import whole_folder

VQGAN_FOLDER = "vqgan"
TEXT_FOLDER = "text"

Advance = Callable[[int, int], None]
"""Called with the number of pictures encoded so far, and the total number."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The inputs of a trainer besides its settings."""

    data: Path
    """Data folder: a world, or Parquet shards."""
    vqgan: Path | None = None
    """Image tokenizer: the run that trained it, or a folder with a VQGAN. None for a trainer that needs none. The
    trainer of tokenizers starts from its weights."""
    model: str | Path | None = None
    """Model that a refiner is trained for: its name or its folder; None for the shipped model. Other trainers need
    none."""


def keep(folder: Path, write: Callable[[Path], object]) -> None:
    """Makes a folder of a run, unless an earlier part of the run made it.

    Args:
        folder: the folder to make, whole or not at all.
        write: fills the folder that it is given.

    Raises:
        SmaltiError: the disk is full or cannot be written.
    """
    if not folder.is_dir():
        with whole_folder(folder) as partial:
            write(partial)
