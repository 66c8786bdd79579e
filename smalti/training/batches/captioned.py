"""Captions with image tokens, from which the generator learns: encoded once, then read from Parquet shards."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

from smalti.errors import InvalidInputError
from smalti.models.vqgan import VQGAN
from smalti.text.tokenizer import TextTokenizer, TokenizedText
from smalti.training.batches.batch import Batch
from smalti.training.batches.random_numbers import generator_at
from smalti.training.batches.sources import ShuffledRows, find_world, load_column
from smalti.training.data.encoding import Advance
from smalti.training.data.shards import splits_in
from smalti.training.data.world.attributes import SPLITS
from smalti.training.data.world.composition import CompositionDataset, World
from smalti.training.data.world.encoding import encode_compositions
from smalti.training.prefetching import processes_for_batches

HELD_OUT_SPLITS = ("held_out", "validation")
"""Splits that training never sees; the first one that exists chooses the best checkpoint."""
_STREAM = 1
"""Stream of random numbers of the batches; see `generator_at`."""


def encoded_data(
    data: Path, vqgan: VQGAN, cache: Path, *, pictures: int, held_out: int, seed: int, advance: Advance
) -> Path:
    """Returns a folder of encoded shards: the data folder itself, or one that is made from its world.

    Args:
        data: the data folder.
        vqgan: image tokenizer.
        cache: the folder to make for a world; if it exists, an earlier part of the run made it.
        pictures: number of training pictures to make.
        held_out: number of pictures to make for each other split.
        seed: seed of the training pictures.
        advance: called with the number of pictures encoded so far.

    Raises:
        InvalidInputError: the world cannot be used.
        SmaltiError: the disk is full or cannot be written.
    """
    folder = find_world(data)
    if folder is None:
        return data
    if not cache.is_dir():
        world = World.load(folder, vqgan.config.resolution)
        # Held-out pictures do not depend on the seed, so that runs can be compared.
        wanted = [
            (
                CompositionDataset(world, seed if split == "train" else 0, split),
                pictures if split == "train" else held_out,
            )
            for split in SPLITS
        ]
        encode_compositions(wanted, vqgan, cache, advance=advance, processes=processes_for_batches())
    return cache


@dataclass(frozen=True)
class CaptionedTokens:
    """Captions with the image tokens of their pictures."""

    captions: pa.ChunkedArray
    encodings: pa.ChunkedArray

    @classmethod
    def load(cls, folder: Path, split: str, tokens: int, codes: int) -> "CaptionedTokens":
        """Loads a split.

        Args:
            folder: folder of encoded shards.
            split: name of the split.
            tokens: number of tokens that the image tokenizer makes of a picture.
            codes: number of codes of the image tokenizer.

        Raises:
            InvalidInputError: a column is missing, or another image tokenizer made the tokens.
        """
        captions, encodings = load_column(folder, split, "caption"), load_column(folder, split, "encoding")
        lengths = pc.unique(pc.list_value_length(encodings)).to_pylist()
        if lengths != [tokens]:
            raise InvalidInputError(
                "data",
                f"{folder}: the pictures of {split!r} must have {tokens} tokens, as the tokenizer makes, not {lengths}",
            )
        largest = pc.max(pc.list_flatten(encodings)).as_py()
        if largest >= codes:
            raise InvalidInputError(
                "data",
                f"{folder}: the tokens of {split!r} must be below {codes}, the tokenizer's codes, not {largest}",
            )
        return cls(captions, encodings)

    def __len__(self) -> int:
        return len(self.captions)

    def take(self, rows: Int[np.ndarray, " count"]) -> tuple[list[str], Int[np.ndarray, "count tokens"]]:
        """Returns captions and tokens of the given rows."""
        return self.captions.take(rows).to_pylist(), np.array(self.encodings.take(rows).to_pylist(), np.int32)


class CaptionBatches:
    """Batches for the generator, a function of seed and step alone.

    Some captions are left blank, so that the model also learns the unconditional distribution that guidance needs
    (Ho & Salimans 2022, https://arxiv.org/abs/2207.12598). Some input tokens of the decoder are replaced at random, so
    that it learns to continue after imperfect tokens like its own.
    """

    def __init__(
        self,
        data: CaptionedTokens,
        tokenizer: TextTokenizer,
        *,
        codes: int,
        size: int,
        seed: int,
        blank_captions: float,
        replaced_tokens: float,
    ) -> None:
        """Makes the batches of a run.

        Args:
            data: captions and tokens.
            tokenizer: text tokenizer.
            codes: number of image tokens; the id of the start token is the next one.
            size: pictures in a batch.
            seed: seed of the order and of everything random.
            blank_captions: share of captions that are left blank.
            replaced_tokens: share of the decoder's input tokens that are replaced; the start token never is.
        """
        self._data = data
        self._tokenizer = tokenizer
        self._blank = tokenizer.unconditional()
        self._codes = codes
        self._size = size
        self._seed = seed
        self._blank_captions = blank_captions
        self._replaced_tokens = replaced_tokens
        self._order = ShuffledRows(len(data), seed)

    def __call__(self, step: int) -> Batch:
        """Returns the batch of a step."""
        captions, tokens = self._data.take(self._order.rows_at(step * self._size, self._size))
        generator = generator_at(self._seed, _STREAM, step)
        text = self._tokenizer(captions)
        blank = generator.random(self._size) < self._blank_captions
        text.input_ids[blank], text.attention_mask[blank] = self._blank.input_ids, self._blank.attention_mask
        replaced = generator.random(tokens.shape) < self._replaced_tokens
        given = np.where(replaced, generator.integers(0, self._codes, tokens.shape), tokens)
        return lay_out(text, given, tokens, self._codes)


def lay_out(
    text: TokenizedText,
    given: Int[np.ndarray, "batch tokens"],
    tokens: Int[np.ndarray, "batch tokens"],
    start: int,
) -> Batch:
    """Returns the arrays that the loss reads; the input of the decoder is shifted right by the start token."""
    starts = np.full((len(given), 1), start)
    return {
        "input_ids": text.input_ids,
        "attention_mask": text.attention_mask,
        "decoder_input_ids": np.concatenate([starts, given[:, :-1]], axis=1).astype(np.int32),
        "labels": tokens,
    }


def held_out_splits(folder: Path) -> list[str]:
    """Returns the splits of a data folder that training never sees, in the order of `HELD_OUT_SPLITS`.

    Raises:
        InvalidInputError: there is no such split.
    """
    splits = [split for split in HELD_OUT_SPLITS if split in splits_in(folder)]
    if not splits:
        raise InvalidInputError(
            "data", f"{folder} must have a held-out split, named {' or '.join(HELD_OUT_SPLITS)}"
        )
    return splits


def evaluation_batches(
    folder: Path, tokenizer: TextTokenizer, tokens: int, codes: int, size: int, count: int
) -> Mapping[str, Sequence[Batch]]:
    """Returns the batches of an evaluation, by the name of the loss that is measured on them.

    "loss" has pictures of held-out combinations, or of the split `validation` if no combinations are held out.
    "seen_combinations" has held-out pictures of combinations that training sees. "shuffled" has the pictures of "loss"
    with each other's captions: the difference of the two losses measures how much the captions help.

    Raises:
        InvalidInputError: there is no held-out split.
    """
    splits = held_out_splits(folder)
    batches: dict[str, Sequence[Batch]] = {}
    for name, split in zip(("loss", "seen_combinations"), splits, strict=False):
        data = CaptionedTokens.load(folder, split, tokens, codes)
        captions, encodings = data.take(np.arange(min(count, len(data))))
        batches[name] = _in_batches(tokenizer, captions, encodings, size, codes)
        if name == "loss":
            # Rotated by half the set. Samples are in random order already, so this is as good as a shuffle.
            moved = captions[len(captions) // 2 :] + captions[: len(captions) // 2]
            batches["shuffled"] = _in_batches(tokenizer, moved, encodings, size, codes)
    return batches


def _in_batches(
    tokenizer: TextTokenizer,
    captions: list[str],
    encodings: Int[np.ndarray, "pictures tokens"],
    size: int,
    start: int,
) -> list[Batch]:
    text = tokenizer(captions)
    whole = lay_out(text, encodings, encodings, start)
    # All batches have one size, so that the program is compiled once; a smaller last one is left out.
    size = min(size, len(captions))
    return [
        {name: rows[first : first + size] for name, rows in whole.items()}
        for first in range(0, len(captions) - size + 1, size)
    ]
