"""Cleaning of foreign pictures and captions: which are good enough to learn from."""

import html
import re
import unicodedata
from functools import cache
from importlib import resources
from urllib.parse import urlsplit

import ftfy
from PIL import Image

_ADDRESS = re.compile(r"\b(?:https?://|www\.)\S+", re.IGNORECASE)
_TAG = re.compile(r"</?[a-z][^<>]*>", re.IGNORECASE)
_FILE_NAME = re.compile(r"[\w()-]*\d[\w()-]*|[\w() -]+\.(?:jpe?g|png|gif|webp|bmp|tiff?)", re.IGNORECASE)
_STOCK_NUMBER = re.compile(r"\b(?:stock (?:photo|image|vector|illustration)s?)?\s*#?\d{6,}\b", re.IGNORECASE)
_SPACE = re.compile(r"\s+")
_MIN_LETTERS = 3


def clean_caption(text: str, longest: int = 300) -> str | None:
    """Cleans a caption: repairs the encoding, removes tags, addresses and stock numbers, and collapses spaces.

    Args:
        text: the caption as it was found.
        longest: maximal number of characters; a longer caption is cut between words.

    Returns:
        the caption, or None if nothing is left that could describe a picture.
    """
    text = unicodedata.normalize("NFC", ftfy.fix_text(html.unescape(text)))
    for pattern in (_TAG, _ADDRESS, _STOCK_NUMBER):
        text = pattern.sub(" ", text)
    text = "".join(" " if unicodedata.category(character)[0] == "C" else character for character in text)
    text = _SPACE.sub(" ", text).strip(" -_|,;:#*\"'")
    if sum(character.isalpha() for character in text) < _MIN_LETTERS or _FILE_NAME.fullmatch(text):
        return None
    if len(text) > longest:
        text = text[: longest + 1].rpartition(" ")[0] or text[:longest]
    return text


def watermark_host(address: str) -> str | None:
    """Returns the host of an address if its pictures are known to carry watermarks, otherwise None."""
    try:
        host = (urlsplit(address).hostname or "").rstrip(".")
    except ValueError:
        return None
    labels = host.split(".")
    parents = (".".join(labels[first:]) for first in range(len(labels)))
    return next((parent for parent in parents if parent in _watermark_hosts()), None)


def size_problem(picture: Image.Image, smallest_side: int, longest_shape: float) -> str | None:
    """Returns what is wrong with the size of a picture, or None.

    Args:
        picture: the picture.
        smallest_side: minimal length of the short side, in pixels.
        longest_shape: maximal ratio of the long side to the short one.
    """
    short, long = sorted(picture.size)
    if short < smallest_side:
        return "too small"
    if long > longest_shape * short:
        return "too long"
    return None


@cache
def _watermark_hosts() -> frozenset[str]:
    lines = resources.files(__package__).joinpath("watermark_hosts.txt").read_text("utf-8").splitlines()
    return frozenset(line.strip() for line in lines if line.strip() and not line.startswith("#"))
