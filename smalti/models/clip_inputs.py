"""What a CLIP reads: token ids of prompts and pixels of pictures, the same as those that open_clip makes."""

import gzip
import html
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import ftfy
import numpy as np
import regex
import torch
from jaxtyping import Float, Int
from PIL import Image

MAX_MERGES = 49_152 - 256 - 2
START, END = "<start_of_text>", "<end_of_text>"

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
"""Of OpenAI's training pictures; the defaults of `preprocess_cfg`."""
_KNOWN = {"size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color"}

# Bytes as characters that are visible: the printable ones stand for themselves.
_PRINTABLE = (*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1))
_OTHER = tuple(byte for byte in range(256) if byte not in _PRINTABLE)
_CHARACTERS = {
    **{byte: chr(byte) for byte in _PRINTABLE},
    **{byte: chr(256 + place) for place, byte in enumerate(_OTHER)},
}
_WORD = regex.compile(
    rf"{START}|{END}|'s|'t|'re|'ve|'m|'ll|'d|[\p{{L}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{N}}]+", regex.IGNORECASE
)
_WORD_END = "</w>"


class ClipTokenizer:
    """Byte pair encoding of lower-case text; gives the ids of open_clip's tokenizer with the same merges."""

    def __init__(self, merges: Sequence[tuple[str, ...]], context_length: int) -> None:
        """Makes a tokenizer from its merges in order, and its number of positions."""
        single = list(_CHARACTERS.values())
        tokens = [*single, *(each + _WORD_END for each in single), *map("".join, merges), START, END]
        self._ids = {token: place for place, token in enumerate(tokens)}
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        self._context_length = context_length
        self.merges = tuple(merges)

    @classmethod
    def load(cls, path: Path, context_length: int) -> "ClipTokenizer":
        """Loads a file of merges; raises whatever a damaged one causes."""
        lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
        return cls([tuple(line.split()) for line in lines[1 : 1 + MAX_MERGES]], context_length)

    def __call__(self, texts: Sequence[str]) -> Int[torch.Tensor, "texts positions"]:
        """Returns the ids of texts, with start and end, cut off or padded with zeros to the number of positions."""
        result = torch.zeros(len(texts), self._context_length, dtype=torch.long)
        for row, text in zip(result, texts, strict=True):
            ids = [self._ids[START], *self._encode(text), self._ids[END]]
            if len(ids) > self._context_length:
                ids = [*ids[: self._context_length - 1], self._ids[END]]
            row[: len(ids)] = torch.tensor(ids)
        return result

    def _encode(self, text: str) -> list[int]:
        clean = " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).lower()
        return [self._ids[token] for word in _WORD.findall(clean) for token in self._split(word)]

    def _split(self, word: str) -> list[str]:
        """Splits a word into tokens: again and again, joins the pair that was learned first."""
        if word in (START, END):
            return [word]
        parts = [_CHARACTERS[byte] for byte in word.encode()]
        parts[-1] += _WORD_END
        while len(parts) > 1:
            first = min(pairwise(parts), key=lambda pair: self._ranks.get(pair, MAX_MERGES))
            if first not in self._ranks:
                break
            joined: list[str] = []
            place = 0
            while place < len(parts):
                found = tuple(parts[place : place + 2]) == first
                joined.append("".join(first) if found else parts[place])
                place += 2 if found else 1
            parts = joined
        return parts


def picture_reader(config: Mapping[str, Any], size: int) -> Callable[[Image.Image], torch.Tensor] | None:
    """Returns the function that prepares a picture for a CLIP; None for a `preprocess_cfg` that is left to open_clip.

    Args:
        config: the `preprocess_cfg`.
        size: width and height of the CLIP's pictures.
    """
    usual = config.get("mode", "RGB") == "RGB" and config.get("resize_mode", "shortest") == "shortest"
    if not usual or config.get("interpolation", "bicubic") != "bicubic" or not config.keys() <= _KNOWN:
        return None
    # Three numbers each, one for each colour.
    mean, std = (torch.tensor(config.get(name) or usual) for name, usual in (("mean", _MEAN), ("std", _STD)))
    if mean.shape != (3,) or std.shape != (3,):
        return None

    def read(picture: Image.Image) -> Float[torch.Tensor, "3 size size"]:
        width, height = picture.size
        short, long = sorted((width, height))
        if short != size:
            other = int(size * long / short)
            picture = picture.resize(
                (size, other) if width <= height else (other, size), Image.Resampling.BICUBIC
            )
        left, top = (round((side - size) / 2) for side in picture.size)
        pixels = np.array(picture.crop((left, top, left + size, top + size)).convert("RGB"))
        values = torch.from_numpy(pixels).permute(2, 0, 1).contiguous().to(torch.float32).div(255)
        return values.sub_(mean[:, None, None]).div_(std[:, None, None])

    return read
