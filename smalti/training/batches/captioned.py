"""Captions with image tokens, as the generator learns them: made once, then read from Parquet shards."""

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
from smalti.training.batches.sources import Order, find_world, read_column
from smalti.training.data.encoding import Advance, encode_compositions
from smalti.training.data.shards import splits_in
from smalti.training.data.world.attributes import SPLITS
from smalti.training.data.world.composition import CompositionDataset, World
from smalti.training.loop.step import Batch

HELD_OUT_SPLITS = ("held_out", "validation")
"""The splits that training never sees; the first that is there chooses the best checkpoint."""


def prepare(
    data: Path, vqgan: VQGAN, cache: Path, pictures: int, held_out: int, seed: int, advance: Advance
) -> Path:
    """Returns the folder of encoded shards: the data folder if it has them, else one made of its world.

    Args:
        data: the data folder.
        vqgan: makes the tokens.
        cache: the folder to make; if it is there, it was made by this run before.
        pictures: how many pictures of the world there will be to train on.
        held_out: and in each of the other splits.
        seed: of the world's pictures.
        advance: is told how many are done.

    Raises:
        InvalidInputError: the data folder has neither.
        SmaltiError: the disk is full.
    """
    folder = find_world(data)
    if folder is None:
        return data
    if not cache.is_dir():
        world = World.load(folder, vqgan.config.resolution)
        # Held-out pictures are the same for every seed, so that runs can be compared.
        wanted = [
            (
                CompositionDataset(world, seed if split == "train" else 0, split),
                pictures if split == "train" else held_out,
            )
            for split in SPLITS
        ]
        encode_compositions(wanted, vqgan, cache, advance=advance)
    return cache


@dataclass(frozen=True)
class Captioned:
    """Some captions with the tokens of their pictures."""

    captions: pa.ChunkedArray
    encodings: pa.ChunkedArray

    @classmethod
    def read(cls, folder: Path, split: str, tokens: int, codes: int) -> "Captioned":
        """Reads a split.

        Raises:
            InvalidInputError: a column is missing, or its tokens are not those of the tokenizer.
        """
        captions, encodings = read_column(folder, split, "caption"), read_column(folder, split, "encoding")
        lengths = pc.unique(pc.list_value_length(encodings)).to_pylist()
        if lengths != [tokens]:
            raise InvalidInputError(
                "data",
                f"{folder}: the pictures of {split!r} have {lengths} tokens, the tokenizer's have {tokens}",
            )
        largest = pc.max(pc.list_flatten(encodings)).as_py()
        if largest >= codes:
            raise InvalidInputError(
                "data", f"{folder}: there is a token {largest} in {split!r}, the tokenizer has {codes} codes"
            )
        return cls(captions, encodings)

    def __len__(self) -> int:
        return len(self.captions)

    def take(self, rows: Int[np.ndarray, " count"]) -> tuple[list[str], Int[np.ndarray, "count tokens"]]:
        """Returns the captions and tokens of some rows."""
        return self.captions.take(rows).to_pylist(), np.array(self.encodings.take(rows).to_pylist(), np.int32)


class CaptionBatches:
    """Batches for the generator, a function of seed and step alone.

    Some captions are left blank, so that the model learns to draw without one, which guidance leads away from
    (Ho & Salimans 2022, https://arxiv.org/abs/2207.12598). Some of the tokens that the decoder is given are
    replaced at random, so that it learns to go on after tokens that are not quite right, as its own will be.
    """

    def __init__(
        self,
        data: Captioned,
        tokenizer: TextTokenizer,
        codes: int,
        size: int,
        seed: int,
        blank_captions: float,
        replaced_tokens: float,
    ) -> None:
        """Keeps what batches are made of.

        Args:
            data: the captions and tokens.
            tokenizer: of the text.
            codes: the number of image tokens; the start token comes after them.
            size: pictures in a batch.
            seed: of everything random.
            blank_captions: the share of captions that are left blank.
            replaced_tokens: the share of the decoder's input tokens that are replaced; the start token never is.
        """
        self._data = data
        self._tokenizer = tokenizer
        self._blank = tokenizer.unconditional()
        self._codes = codes
        self._size = size
        self._seed = seed
        self._blank_captions = blank_captions
        self._replaced_tokens = replaced_tokens
        self._order = Order(len(data), seed)

    def __call__(self, step: int) -> Batch:
        """Makes the batch of a step."""
        captions, tokens = self._data.take(self._order.rows_at(step * self._size, self._size))
        # The step is the counter's highest word, so no two steps share a number.
        generator = np.random.Generator(np.random.Philox(key=(self._seed, 1), counter=(0, 0, 0, step)))
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
    """Returns the arrays that the loss reads; the decoder is given what comes before each token."""
    starts = np.full((len(given), 1), start)
    return {
        "input_ids": text.input_ids,
        "attention_mask": text.attention_mask,
        "decoder_input_ids": np.concatenate([starts, given[:, :-1]], axis=1).astype(np.int32),
        "labels": tokens,
    }


def held_out_splits(folder: Path) -> list[str]:
    """Returns the splits of a data folder that training never sees, the one that matters most first.

    Raises:
        InvalidInputError: there is none.
    """
    splits = [split for split in HELD_OUT_SPLITS if split in splits_in(folder)]
    if not splits:
        raise InvalidInputError(
            "data", f"{folder} holds nothing out: it needs a split {' or '.join(HELD_OUT_SPLITS)}"
        )
    return splits


def evaluation_batches(
    folder: Path, tokenizer: TextTokenizer, tokens: int, codes: int, size: int, count: int
) -> Mapping[str, Sequence[Batch]]:
    """Returns what an evaluation looks at, by the name of its loss.

    "loss" is on pictures that training never sees, of combinations that it never sees if the data has them; then
    "seen_combinations" is on other pictures of the combinations that it does see. "shuffled" gives the pictures of
    "loss" each other's captions: what the captions are worth is how much larger it is.

    Raises:
        InvalidInputError: there is nothing held out.
    """
    splits = held_out_splits(folder)
    batches: dict[str, Sequence[Batch]] = {}
    for name, split in zip(("loss", "seen_combinations"), splits, strict=False):
        data = Captioned.read(folder, split, tokens, codes)
        captions, encodings = data.take(np.arange(min(count, len(data))))
        batches[name] = _in_batches(tokenizer, captions, encodings, size, codes)
        if name == "loss":
            # Each caption moves half the set on; drawn samples have no order, so that is as good as a shuffle.
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
    # Of one size, so that the program is compiled once; a last part that is smaller is left out.
    size = min(size, len(captions))
    return [
        {name: rows[first : first + size] for name, rows in whole.items()}
        for first in range(0, len(captions) - size + 1, size)
    ]
