"""Normalising prompts in the same way as DALL·E mini normalised its captions."""

import html
import random
import re
from pathlib import Path

import emoji
import ftfy
from unidecode import unidecode

from smalti.text.hashtags import HashtagSplitter

# CC12M has "<person>" instead of names. It is replaced by one of these phrases, drawn with weights: how often the
# phrase occurs in Wikipedia.
_PERSON_WEIGHTS = {"a person": 282265, "someone": 121194, "somebody": 12219}
_PERSON = re.compile("<person>")
_PERSONS = re.compile(r"<person>(?:[,\s]*+(?:and)*+[,\s]*+<person>)+")

_REFERENCE_AT_START = re.compile(r"\A\s*\[\d+\]")
_REFERENCE_AT_END = re.compile(r"\[\d+\]\s*\Z")
_TAG = re.compile("<[^<]+?>")
_ADDRESS = re.compile(r"http\S+")
_THOUSANDS = re.compile(r"(\d),(\d{3})")

# Punctuation inside a word is replaced by a placeholder while all other punctuation is rewritten. The placeholders are
# those of the original, because hashtags are split while the text contains them.
_DOT, _APOSTROPHE, _SLASH = "xtokxdotxtokx", "xtokxquotextokx", "xtokxslashxtokx"
_INNER_DOT = re.compile(r"(\w)\.(\w)")
_INNER_APOSTROPHE = re.compile(r"'(?=(?:[stdm]|ll|re|ve)\b)")
_INNER_SLASH = re.compile(r"(\d)/(\d)")

_HYPHEN = re.compile(r"(\w)-(\w)")
_SYMBOL = re.compile("[%&/$*]")
_HASHTAG = re.compile(r"#(\w+)")
_IGNORED = re.compile(r"[_#\\]")
_QUOTE = re.compile("['\"`]")
_PUNCTUATION = re.compile(r"[()\[\].,|:;?!=+~\-/{}]")

# Up to three are kept, because of "viii".
_REPEATED = re.compile(r"(\D)\1{3,}")
_QUOTES_AND_SPACES = re.compile(r'[\s"]+')
_COMMAS_AND_SPACES = re.compile(r"[\s,]+")
_SPACES = re.compile(r"\s+")


class TextNormalizer:
    """Turns a text into lower-case ASCII with little markup and punctuation.

    The rules and their order are those of DALL·E mini, with one difference: the original draws a phrase for "<person>"
    at random; here the text itself is the seed, so that a prompt always gives the same tokens.

    Args:
        words: a list of words, the most frequent first, for splitting hashtags into words (`enwiki-words-frequency.txt`
            of the published models). Without it, hashtags are not split.

    Raises:
        ModelError: `words` is missing; the first hashtag raises it if the file cannot be used.
    """

    def __init__(self, words: Path | None = None) -> None:
        self.words = words
        self._split_hashtag = HashtagSplitter(words) if words else str

    def __call__(self, text: str) -> str:
        """Returns the normalised text: one space, then the words with single spaces between them."""
        text = _to_ascii(text)
        text = _name_persons(text)
        text = _drop_markup(text)
        text = _THOUSANDS.sub(r"\1\2", _THOUSANDS.sub(r"\1\2", text))

        text = _set_aside(text)
        text = _HYPHEN.sub(r"\1 \2", text)
        text = _SYMBOL.sub(r" \g<0> ", text)
        text = _HASHTAG.sub(lambda hashtag: self._split_hashtag(hashtag[1]), text)
        text = _IGNORED.sub(" ", text)
        text = _QUOTE.sub(' " ', text)
        text = _PUNCTUATION.sub(",", text)
        text = _put_back(text)

        return " " + _tidy(text)


def _to_ascii(text: str) -> str:
    text = ftfy.fix_text(text)
    # Captions from the web are often escaped twice.
    text = html.unescape(html.unescape(text))
    # Emoji become their names first, since transliteration would drop them.
    return unidecode(emoji.demojize(text)).lower()


def _name_persons(text: str) -> str:
    text = _PERSONS.sub(" people ", text)
    draw = random.Random(text)
    phrases, weights = list(_PERSON_WEIGHTS), list(_PERSON_WEIGHTS.values())
    return _PERSON.sub(lambda _: f" {draw.choices(phrases, weights)[0]} ", text)


def _drop_markup(text: str) -> str:
    # Captions from Wikipedia end with the numbers of their footnotes.
    text = _REFERENCE_AT_START.sub("", text)
    text = _REFERENCE_AT_END.sub("", text)
    text = _TAG.sub(" ", text)
    return _ADDRESS.sub("", text)


def _set_aside(text: str) -> str:
    text = _INNER_DOT.sub(rf"\1{_DOT}\2", text)
    text = _INNER_APOSTROPHE.sub(_APOSTROPHE, text)
    return _INNER_SLASH.sub(rf"\1{_SLASH}\2", text)


def _put_back(text: str) -> str:
    return text.replace(_DOT, ".").replace(_APOSTROPHE, "'").replace(_SLASH, "/")


def _tidy(text: str) -> str:
    text = _REPEATED.sub(r"\1", text)
    text = _QUOTES_AND_SPACES.sub(lambda run: ' " ' if '"' in run[0] else run[0], text)
    text = _COMMAS_AND_SPACES.sub(lambda run: ", " if "," in run[0] else run[0], text)
    text = _SPACES.sub(" ", text).strip()
    return text.removesuffix(",").removeprefix(",").strip()
