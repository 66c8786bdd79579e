"""Rewording prompts for models of a small world, which know only the words of their captions.

A prompt whose words are all known stays as it is. Any other prompt becomes a new caption from the words that are known
or have a known replacement, in the form of most captions that the model was trained on: "a red cat and a dog on a blue
background". Words that the model has never read would be noise to it.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from smalti.text.lexicon import MAX_PROMPT_LENGTH, Lexicon, Meaning, read_tokens
from smalti.text.variation import Variations
from smalti.text.vocabulary import Words, article, load_words

MAX_THINGS = 2
"""Maximum number of things in a caption."""
_MAX_NAMED = 6
_MAX_NAMED_LENGTH = 30

_BEFORE_BACKGROUNDS = {"in", "on", "with"}
_ARTICLES = {"a", "an", "the"}


@dataclass(frozen=True)
class Rewording:
    """The prompt that a model gets instead of the user's."""

    prompt: str
    """The prompt in words that the model knows; the user's prompt for a model that reads any text."""
    unknown: tuple[str, ...] = ()
    """Words of the user's prompt that were replaced or dropped because the model does not know them."""
    left_out: tuple[str, ...] = ()
    """Known words that do not fit into a caption, such as a third thing or a second background."""
    notice: str = ""
    """One line on what was replaced; empty if nothing is lost."""


class Rewriter:
    """Rewords prompts; needs only `words.json` of the model."""

    def __init__(self, words: Words | None) -> None:
        """Makes the tables for a model's words; None is a model that reads any text, whose prompts stay the same."""
        self._lexicon = Lexicon(words) if words else None
        self._variations = Variations(self._lexicon) if self._lexicon else None

    @classmethod
    def load(cls, file: Path | None) -> Self:
        """Reads a model's `words.json`; None is for a model that reads any text.

        Raises:
            ModelError: the file cannot be used.
        """
        return cls(load_words(file))

    def __call__(self, prompt: str) -> Rewording:
        """Returns the rewording of a prompt; the same on every machine."""
        if self._lexicon is None:
            return Rewording(prompt)
        tokens = read_tokens(prompt)
        meanings = list(self._lexicon.meanings(tokens[:MAX_PROMPT_LENGTH]))
        scene = _Scene(self._lexicon.words, [meaning for meaning in meanings if meaning.kind])
        unknown = tuple(dict.fromkeys(meaning.said for meaning in meanings if not meaning.same))
        names_something = bool(scene.figures)
        if not names_something:
            scene.add_figure(self._lexicon.nearest_thing(" ".join(unknown)))
        unchanged = (
            names_something
            and all(meaning.exact for meaning in meanings)
            and not (scene.left_out or scene.has_implied_background or len(tokens) > MAX_PROMPT_LENGTH)
        )
        drawn = _lower_case(prompt) if unchanged else scene.caption()
        left_out = tuple(dict.fromkeys(scene.left_out))
        problems = [f"does not know {_named(unknown)}"] if unknown else []
        if left_out:
            problems.append(f"cannot draw {_named(left_out)} here")
        if len(tokens) > MAX_PROMPT_LENGTH:
            problems.append(f"reads at most {MAX_PROMPT_LENGTH} words")
        problem = f"the model {' and '.join(problems)}" if problems else "the prompt names no known thing"
        notice = f'{problem}; drawing "{drawn}". It knows {len(self._lexicon.words.things)} things'
        return Rewording(drawn, unknown, left_out, notice if problems or not names_something else "")

    def wordings(self, prompt: str, seed: int, candidates: Sequence[int]) -> tuple[str, ...]:
        """Returns what is encoded for each candidate: the prompt, and words for what it leaves open.

        Args:
            prompt: the prompt of a rewording.
            seed: the seed of the candidates.
            candidates: the candidates' indices.
        """
        if self._variations is None:
            return (prompt,) * len(candidates)
        return self._variations(prompt, seed, candidates)


@dataclass
class _Figure:
    thing: str
    colour: Meaning | None
    size: Meaning | None

    def noun(self, plurals: tuple[str, ...]) -> str:
        looks = (look.word for look in (self.size, self.colour) if look)
        noun = " ".join((*looks, self.thing))
        return noun if self.thing in plurals else f"{article(noun)} {noun}"


@dataclass
class _Scene:
    """The things of a prompt with their attributes, read from left to right."""

    words: Words
    meanings: list[Meaning]
    """The meanings of the prompt that have a kind."""
    figures: list[_Figure] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    has_implied_background: bool = False
    """Whether the prompt has a background without the word "background": "on yellow"."""
    _background: Meaning | None = None
    _place: Meaning | None = None
    _style: Meaning | None = None
    _others: dict[str, Meaning] = field(default_factory=dict)
    """The count, pattern, pose, relation and scene."""
    # Read before the thing that they belong to.
    _colour: Meaning | None = None
    _size: Meaning | None = None
    _second_is_left: bool = False

    def __post_init__(self) -> None:
        for index, meaning in enumerate(self.meanings):
            if meaning.kind == "thing":
                self._take_thing(index)
            elif meaning.kind == "colour":
                self._take_colour(index)
            elif meaning.kind == "size":
                self._take_size(index)
            elif meaning.kind == "place":
                self._place = self._first(self._place, meaning)
            elif meaning.kind == "style":
                self._style = self._first(self._style, meaning)
            elif meaning.kind in ("count", "pattern", "pose", "relation", "scene"):
                self._others[meaning.kind] = self._first(self._others.get(meaning.kind), meaning)
            elif len(self.figures) == 1 and (meaning.word, self._word(index + 1)) == ("right", "of"):
                self._second_is_left = True
        if len(self.figures) > 1:
            self._leave_out(self._place)
            self._place = None
        self._drop_others()
        if self.figures:
            self._leave_out(self._size, self._colour)

    def _drop_others(self) -> None:
        """Leaves out what does not go together: a pair is not counted, and one thing has no relation."""
        pair = len(self.figures) > 1
        count = self._others.get("count")
        copies = self.words.counts.get(count.word, 1) if count else 1
        counted = copies > 1 and len(self.figures) == 1 and self.figures[0].thing in self.words.many
        dropped = {
            "count": copies > 1 and not counted,
            "pose": pair or counted,
            "relation": not pair,
            "pattern": not self._background,
            "scene": self._background is not None,
        }
        for kind, is_dropped in dropped.items():
            if is_dropped and kind in self._others:
                self._leave_out(self._others.pop(kind))
        if counted:
            self._leave_out(self.figures[0].size, self._place)
            self.figures[0].size = self._place = None

    def add_figure(self, thing: str) -> None:
        """Adds a thing with the colour and size that were read before it."""
        self.figures.append(_Figure(thing, self._colour, self._size))
        self._colour = self._size = None

    def caption(self) -> str:
        """Returns the caption in its most common form."""
        figures = reversed(self.figures) if self._second_is_left else self.figures
        said = {kind: meaning.word for kind, meaning in self._others.items()}
        link = f" {said.get('relation', 'and')} "
        text = link.join(figure.noun(self.words.plurals) for figure in figures)
        if self.words.counts.get(said.get("count", ""), 1) > 1:
            thing, colour = self.figures[0].thing, self.figures[0].colour
            text = " ".join((said["count"], *((colour.word,) if colour else ()), self.words.many[thing]))
        if "pose" in said:
            text += f" {said['pose']}"
        if self._place:
            text += f" {self._place.word}"
        if self._background and "pattern" in said:
            nouns = {noun: pattern for pattern, noun in self.words.patterns.items()}
            text += f" on a {nouns.get(said['pattern'], said['pattern'])} {self._background.word} background"
        elif self._background:
            text += f" on {article(self._background.word)} {self._background.word} background"
        if "scene" in said:
            text += f" {said['scene']}"
        return f"{text} in {self._style.word} style" if self._style else text

    def _take_thing(self, index: int) -> None:
        thing = self.meanings[index]
        if len(self.figures) < MAX_THINGS:
            self.add_figure(thing.word)
        else:
            self._leave_out(self._size, self._colour, thing)
            self._colour = self._size = None

    def _take_colour(self, index: int) -> None:
        colour, following = self.meanings[index], self._following(index)
        of_thing = following is not None and following.kind == "thing"
        named = following is not None and following.word == "background"
        if named or (self.figures and self._follows_on(index) and not of_thing):
            self._take_background(colour, named)
        elif colour.word not in self.words.colours:
            self._leave_out(colour)
        elif of_thing or not self.figures:
            self._leave_out(self._colour)
            self._colour = colour
        else:
            self.figures[-1].colour = self._first(self.figures[-1].colour, colour)

    def _take_background(self, colour: Meaning, named: bool) -> None:
        if colour.word not in self.words.backgrounds or (
            self._background and not self.has_implied_background
        ):
            self._leave_out(colour)
            return
        self._leave_out(self._background)
        self._background, self.has_implied_background = colour, not named

    def _take_size(self, index: int) -> None:
        size, following = self.meanings[index], self._following(index)
        if not self.figures or (following is not None and following.kind == "thing"):
            self._size = self._first(self._size, size)
        else:
            self.figures[-1].size = self._first(self.figures[-1].size, size)

    def _first(self, before: Meaning | None, now: Meaning) -> Meaning:
        """Returns the first of two meanings; the second is left out if its word differs."""
        if before and before.word != now.word:
            self._leave_out(now)
        return before or now

    def _leave_out(self, *meanings: Meaning | None) -> None:
        self.left_out += [meaning.said for meaning in meanings if meaning]

    def _following(self, index: int) -> Meaning | None:
        """Returns the next meaning that is neither a colour nor a size."""
        for meaning in self.meanings[index + 1 :]:
            if meaning.kind not in ("colour", "size", "pattern"):
                return meaning
        return None

    def _follows_on(self, index: int) -> bool:
        """Returns whether a colour follows "on", "in" or "with"."""
        before = index - 1 if self._word(index - 1) not in _ARTICLES else index - 2
        return self._word(before) in _BEFORE_BACKGROUNDS

    def _word(self, index: int) -> str:
        return self.meanings[index].word if 0 <= index < len(self.meanings) else ""


def _lower_case(prompt: str) -> str:
    """Returns a prompt in the form of a caption: in lower case, without punctuation except commas."""
    parts = (" ".join(token.said for token in read_tokens(part)) for part in prompt.split(","))
    return ", ".join(part for part in parts if part)


def _named(words: tuple[str, ...]) -> str:
    """Returns words as a list for a message of one line."""
    shown = [
        word if len(word) <= _MAX_NAMED_LENGTH else f"{word[: _MAX_NAMED_LENGTH - 1]}…"
        for word in words[:_MAX_NAMED]
    ]
    named = ", ".join(f'"{unicodedata.normalize("NFC", word)}"' for word in shown)
    more = len(words) - _MAX_NAMED
    return f"{named} and {more} more" if more > 0 else named
