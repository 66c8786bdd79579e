"""Cleaning of foreign pictures and captions: which are good enough to learn from."""

import html
import re
import unicodedata
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Final
from urllib.parse import urlsplit

import emoji
import ftfy
import regex
from PIL import Image

_ADDRESS = re.compile(r"\b(?:https?://|www\.)\S+", re.IGNORECASE)
_TAG_NAMES: Final = (
    "a abbr address area article aside audio b base bdi bdo big blockquote body br button canvas caption center cite "
    "code col dd del details dfn dialog div dl dt em embed fieldset figcaption figure font footer form frame h[1-6] "
    "head header hr html i iframe img input ins kbd label legend li link main map mark menu meta nav object ol option "
    "p param picture pre q rp rt ruby s samp script section select small source span strike strong style sub summary "
    "sup svg table tbody td template textarea tfoot th thead time title tr track tt u ul var video wbr"
).replace(" ", "|")
# An opening tag has attributes with values or none at all, so that "a<b then c>d" is none.
_ATTRIBUTE: Final = r"""\s+[a-z_:][\w:.-]*\s*=\s*(?:"[^"<>]*"|'[^'<>]*'|[^\s"'<>]+)"""
_TAG = re.compile(
    rf"<(?:{_TAG_NAMES})(?:{_ATTRIBUTE})*\s*/?>|</(?:{_TAG_NAMES})\s*>|<!--.*?-->", re.IGNORECASE | re.DOTALL
)
# The scheme of cameras, phones and screenshots: one word with a number, in ASCII, or anything with an ending.
_FILE_NAME = re.compile(r"[\w()-]*\d[\w()-]*|[\w() -]+\.(?:jpe?g|png|gif|webp|bmp|tiff?)", re.IGNORECASE)
# A number alone is none: "1000000 candles".
_STOCK_NUMBER = re.compile(
    r"\bstock (?:photo|image|vector|illustration)s?\s*(?:id|no\.?|number)?[\s:]*#?\d{6,}\b|#\d{6,}\b"
    r"|\b(?:image|photo|picture|asset|item|file)? ?id[\s:#]+\d{6,}\b",
    re.IGNORECASE,
)
_SPACE = re.compile(r"\s+")
_JOINERS: Final = "\u200c\u200d"
"""Words of Persian and Hindi, and emoji such as families, are other ones without them."""
_TAG_SIGNS: Final = range(0xE0020, 0xE0080)
"""They spell the region of a flag, after a black flag."""
_SPACERS: Final = "\u200b"
"""Of no width, between words."""
_MIN_LETTERS: Final = {"LATIN": 3, "CYRILLIC": 2, "GREEK": 2}
"""Fewest letters of a caption by their script. In other scripts one sign may be a word, as in Chinese."""
_TAG_KIND, _ADDRESS_KIND, _NUMBER_KIND, _CONTROL_KIND = "tag", "address", "stock number", "control character"
_LEFT_OUT: Final = ((_TAG_KIND, _TAG), (_ADDRESS_KIND, _ADDRESS), (_NUMBER_KIND, _STOCK_NUMBER))


@dataclass(frozen=True, kw_only=True)
class Cleaned:
    """A caption after cleaning."""

    text: str | None
    """The caption; None if nothing is left that could describe a picture."""
    left_out: dict[str, str] = field(default_factory=dict)
    """What was taken out of it: an example of each kind."""


def clean(text: str, longest: int = 300) -> Cleaned:
    """Cleans a caption: repairs the encoding, removes tags, addresses and stock numbers, and collapses spaces.

    Args:
        text: the caption as it was found, in any script.
        longest: maximal number of characters; a longer caption is cut between words, or between signs that belong
            together.
    """
    text = unicodedata.normalize("NFC", ftfy.fix_text(html.unescape(text)))
    left_out: dict[str, str] = {}
    for kind, pattern in _LEFT_OUT:
        if found := pattern.search(text):
            left_out[kind] = found[0].strip()[:60]
            text = pattern.sub(" ", text)
    shown = _without_controls(text)
    if removed := next((each for each in text if each not in shown and not each.isspace()), None):
        left_out[_CONTROL_KIND] = f"U+{ord(removed):04X}"
    text = _SPACE.sub(" ", shown).strip(" -_|,;:#*\"'")
    if not _says_something(text):
        return Cleaned(text=None, left_out=left_out)
    return Cleaned(text=_cut(text, longest), left_out=left_out)


def _without_controls(text: str) -> str:
    """Returns a text without control characters; joiners stay between signs that they join."""
    kept: list[str] = []
    for position, character in enumerate(text):
        category = unicodedata.category(character)
        if character in _JOINERS:
            joins = 0 < position < len(text) - 1 and kept and not kept[-1].isspace()
            kept.append(character if joins and not text[position + 1].isspace() else "")
        elif ord(character) in _TAG_SIGNS:
            kept.append(character)
        elif character in _SPACERS or category in ("Cc", "Cs", "Co"):
            kept.append(" ")
        elif category == "Cf" and not _is_seen(character):
            continue  # Marks of direction and soft hyphens are inside of words.
        elif category == "Cn" and (ord(character) & 0xFFFE == 0xFFFE or 0xFDD0 <= ord(character) <= 0xFDEF):
            kept.append(" ")  # Never a character; others may be newer than this Python.
        else:
            kept.append(character)
    return "".join(kept)


def _is_seen(character: str) -> bool:
    """Returns whether a format character is drawn, as a few of Arabic and Syriac are."""
    return any(
        word in unicodedata.name(character, "") for word in ("NUMBER", "SANAH", "FOOTNOTE", "SAMVAT", "AYAH")
    )


def _says_something(text: str) -> bool:
    letters = [character for character in text if character.isalpha()]
    if _FILE_NAME.fullmatch(text) and (text.isascii() or not letters or "." in text):
        return False
    if _has_emoji(text):
        return True
    scripts = [unicodedata.name(letter, "").partition(" ")[0] for letter in letters]
    if any(script not in _MIN_LETTERS for script in scripts):
        return True
    return len(letters) >= 3 or any(
        scripts.count(script) >= fewest for script, fewest in _MIN_LETTERS.items()
    )


def _has_emoji(text: str) -> bool:
    # Those newer than the library are in the same blocks as the others. Signs such as © and ™ say nothing.
    newer = any(0x1F300 <= ord(character) <= 0x1FAFF for character in text)
    return newer or any(found["emoji"][0] not in "©®™" for found in emoji.emoji_list(text))


def _cut(text: str, longest: int) -> str:
    """Returns the start of a text: up to a space in its second half, otherwise without cutting through a sign."""
    if len(text) <= longest:
        return text
    words, _, _ = text[: longest + 1].rpartition(" ")
    if 2 * len(words) >= longest:
        return words.rstrip()
    kept = ""
    for sign in regex.findall(r"\X", text[: longest + 64]):
        if len(kept) + len(sign) > longest:
            break
        kept += sign
    return kept.strip() or text[:longest]


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
