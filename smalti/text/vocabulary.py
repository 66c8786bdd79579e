"""`words.json`: the words that a model of a small world knows, and the nearest of them for many others.

Models that read any text, such as DALL·E mini, have no such file.
"""

import re
from pathlib import Path
from typing import Self

from pydantic import Field, ValidationError, model_validator

from smalti.errors import ModelError
from smalti.files import read_json_object
from smalti.validation import Strict, first_problem

KNOWN_WORDS_FILE = "words.json"

_WORD = re.compile(r"[^\W_]+(?:[ '’-][^\W_]+)*")

CAPTION_WORDS = frozenset({"a", "an", "and", "background", "in", "on", "style"})
"""What `smalti.text.rewording` makes a caption with, beside things and what they look like."""


class Words(Strict):
    """What `words.json` holds."""

    things: tuple[str, ...] = Field(min_length=1)
    plurals: tuple[str, ...] = ()
    """The things whose word takes no "a"."""
    colours: tuple[str, ...] = ()
    """Of things."""
    backgrounds: tuple[str, ...] = ()
    """Colours of backgrounds."""
    styles: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()
    grammar: tuple[str, ...] = ()
    """The other words of the captions."""
    synonyms: dict[str, str] = Field(default_factory=dict)
    """Other words for what is known, each with the known word."""
    neighbours: dict[str, str] = Field(default_factory=dict)
    """Words for what is not known, each with the known thing that is most like it."""

    @property
    def known(self) -> frozenset[str]:
        """Every word that the model has learnt; those of several words ("ice cream") as they are."""
        return frozenset().union(
            self.things, self.colours, self.backgrounds, self.styles, self.sizes, self.grammar
        )

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        missing = CAPTION_WORDS - set(self.grammar)
        if missing:
            raise ValueError(f"grammar lacks {', '.join(sorted(missing))}")
        for word in sorted(self.known):
            if word != word.lower() or not _WORD.fullmatch(word):
                raise ValueError(f"{word!r} is no word in lower case")
        for kind, targets, among in (
            ("plurals", self.plurals, set(self.things)),
            ("synonyms", self.synonyms.values(), self.known),
            ("neighbours", self.neighbours.values(), set(self.things)),
        ):
            for word in targets:
                if word not in among:
                    raise ValueError(f"{kind} lead to {word!r}, which is not known")
        return self


def load_words(file: Path | None) -> Words | None:
    """Reads the words that a model knows from its `words.json`; None for a model that reads any text.

    Raises:
        ModelError: the file cannot be used; says which field.
    """
    if file is None:
        return None
    fields = read_json_object(file, f"{file}: missing")
    try:
        return Words.model_validate(fields)
    except ValidationError as error:
        raise ModelError(f"{file}: {first_problem(error)}") from None


def article(noun: str) -> str:
    """Returns "a" or "an", as it stands before a noun."""
    # "unicorn" begins with the sound of "you".
    return "an" if noun[0] in "aeio" or (noun[0] == "u" and not noun.startswith("uni")) else "a"
