"""`words.json`: the words that a model of a small world knows, and the nearest known words for many others.

Models that read any text, such as DALL·E mini, do not have this file.
"""

import re
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, ValidationError, model_validator

from smalti.errors import ModelError
from smalti.files import read_json_object
from smalti.validation import Strict, first_problem

KNOWN_WORDS_FILE = "words.json"

Weight = Annotated[float, Field(gt=0)]

_WORD = re.compile(r"[^\W_]+(?:[ '’-][^\W_]+)*")

CAPTION_WORDS = frozenset({"a", "an", "and", "background", "in", "on", "style"})
"""Words that `smalti.text.rewording` uses in captions, besides things and their attributes."""


class Layout(Strict):
    """A size and a place of a single thing, as words of a caption; None leaves it open."""

    size: str | None = None
    place: str | None = None
    weight: Weight = 1.0


class Variation(Strict):
    """What the candidates of a prompt may be drawn as where the prompt leaves it open; weights are relative."""

    styles: dict[str, Weight] = Field(default_factory=dict)
    layouts: tuple[Layout, ...] = ()


class Words(Strict):
    """The content of `words.json`."""

    things: tuple[str, ...] = Field(min_length=1)
    plurals: tuple[str, ...] = ()
    """Things that take no article, such as "grapes"."""
    many: dict[str, str] = Field(default_factory=dict)
    """Plural of each thing that the model draws several times."""
    colours: tuple[str, ...] = ()
    """Colours of things."""
    backgrounds: tuple[str, ...] = ()
    """Colours of backgrounds."""
    patterns: dict[str, str] = Field(default_factory=dict)
    """Patterns of coloured backgrounds ("striped"), each with its noun ("stripes")."""
    scenes: tuple[str, ...] = ()
    """Wordings of other backgrounds, such as "on a beach"."""
    styles: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()
    counts: dict[str, int] = Field(default_factory=dict)
    """Numbers of copies that the model draws, by their words and figures."""
    places: tuple[str, ...] = ()
    """Wordings of the place of a small thing, such as "at the top"."""
    poses: tuple[str, ...] = ()
    relations: tuple[str, ...] = ()
    """Wordings between two things, such as "in front of"."""
    grammar: tuple[str, ...] = ()
    """Other words of the captions."""
    synonyms: dict[str, str] = Field(default_factory=dict)
    """Known word for each synonym."""
    neighbours: dict[str, str] = Field(default_factory=dict)
    """Most similar known thing for each unknown one."""
    variation: Variation | None = None
    """Words that may be added to a prompt; None for a model whose prompts are always encoded as they are."""

    @property
    def known(self) -> frozenset[str]:
        """Everything that the model knows; terms of several words ("ice cream") are not split."""
        return frozenset().union(
            *(self.things, self.many.values(), self.colours, self.backgrounds),
            *(self.patterns, self.patterns.values(), self.scenes, self.styles, self.sizes, self.counts),
            *(self.places, self.poses, self.relations, self.grammar),
        )

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        missing = CAPTION_WORDS - set(self.grammar)
        if missing:
            raise ValueError(f"grammar must contain {', '.join(sorted(missing))}")
        for word in sorted(self.known):
            if word != word.lower() or not _WORD.fullmatch(word):
                raise ValueError(f"{word!r} must be a word in lower case")
        for kind, targets, among, noun in (
            ("plurals", self.plurals, set(self.things), "thing"),
            ("many", self.many, set(self.things), "thing"),
            ("synonyms", self.synonyms.values(), self.known, "word"),
            ("neighbours", self.neighbours.values(), set(self.things), "thing"),
        ):
            for word in targets:
                if word not in among:
                    raise ValueError(f"{kind} refer to {word!r}, which is not a known {noun}")
        return self

    @model_validator(mode="after")
    def _varies_by_known_words(self) -> Self:
        if self.variation is None:
            return self
        layouts = self.variation.layouts
        for noun, chosen, known in (
            ("style", self.variation.styles, self.styles),
            ("size", [layout.size for layout in layouts], self.sizes),
            ("place", [layout.place for layout in layouts], self.places),
        ):
            for word in chosen:
                if word is not None and word not in known:
                    raise ValueError(f"variation refers to {word!r}, which is not a known {noun}")
        return self


def load_words(file: Path | None) -> Words | None:
    """Reads a model's `words.json`; returns None without one, for a model that reads any text.

    Raises:
        ModelError: the file cannot be used; names the field.
    """
    if file is None:
        return None
    fields = read_json_object(file, f"{file}: missing")
    try:
        return Words.model_validate(fields)
    except ValidationError as error:
        raise ModelError(f"{file}: {first_problem(error)}") from None


def article(noun: str) -> str:
    """Returns the article of a noun, "a" or "an"."""
    # "unicorn" begins with a consonant sound.
    return "an" if noun[0] in "aeio" or (noun[0] == "u" and not noun.startswith("uni")) else "a"
