"""Captions of composed pictures: what they name is true, and what must be said is said."""

import re

import numpy as np
import pytest

from smalti.training.data.world import captions as captions_module
from smalti.training.data.world.attributes import SPLITS, Attributes, Figure
from smalti.training.data.world.captions import grammar_words, usual_caption
from smalti.training.data.world.composition import CompositionDataset, World
from smalti.training.data.world.description import NATURAL, PLAIN


def read(caption: str, world: World) -> dict[str, object]:
    """Reads a caption back, independently of the code that writes it."""
    said: dict[str, object] = {}
    text = caption
    if match := re.fullmatch(r"(.*?)(?:,| in) (\w+) style", text):
        text, said["style"] = match[1], match[2]
    for name, phrase in (("meadow", " on a meadow"), ("meadow", " on grass"), ("night", " at night")):
        if text.endswith(phrase):
            text, said["background"] = text.removesuffix(phrase), name
    if match := re.fullmatch(r"(.*) on an? (\w+) background with (stripes|a gradient)", text):
        pattern = {"stripes": "striped", "a gradient": "gradient"}[match[3]]
        text, said["background"] = match[1], f"{pattern} {match[2]}"
    elif match := re.fullmatch(r"(.*) (?:on|with) an? ([\w ]+) background", text):
        text, said["background"] = match[1], match[2]
    text = re.sub(r"^an? (?:picture|drawing|icon|image) of ", "", text)
    swapped = False
    for phrase, relation, other_way in (
        (" above ", "above", False), (" over ", "above", False), (" below ", "above", True),
        (" under ", "above", True), (" in front of ", "in front of", False), (" behind ", "in front of", True),
        (" to the left of ", "beside", False), (" left of ", "beside", False),
        (" to the right of ", "beside", True), (" right of ", "beside", True), (" next to ", "beside", False),
        (" and ", "beside", False),
    ):  # fmt: skip
        if phrase in text:
            said["relation"], swapped = relation, other_way
            text = text.replace(phrase, " | ", 1)
    sides = text.split(" | ")
    if swapped:
        sides.reverse()
    for phrase, pose in (
        ("upside down", "upside down"), ("tilted to the left", "tilted left"), ("tilted to the right", "tilted right")
    ):  # fmt: skip
        if phrase in sides[0]:
            said["pose"] = pose
            sides[0] = " ".join(sides[0].replace(phrase, "").split())
    for pattern in (
        r" in the (upper|lower|top|bottom) (left|right) corner",
        r" at the (top|bottom) (left|right)",
        r" at the (top|bottom)",
        r" on the (left|right)(?: side)?",
        r" in the (middle|center)",
    ):
        if match := re.search(pattern + "$", sides[0]):
            words = [
                {"upper": "top", "lower": "bottom", "center": "middle"}.get(w, w) for w in match.groups()
            ]
            said["place"] = " ".join(words)
            sides[0] = sides[0][: match.start()]
    figures = []
    for side in sides:
        words = side.split()
        if words[0] in ("a", "an", "one"):
            words.pop(0)
        elif words[0] in ("two", "three", "four", "2", "3", "4"):
            said["count"] = {"two": 2, "three": 3, "four": 4}.get(words[0]) or int(words[0])
            words.pop(0)
            words[-1] = {"boxes": "box"}.get(words[-1], words[-1].removesuffix("s"))
        if words[0] in ("big", "small", "tiny"):
            said["size"] = words.pop(0)
        figures.append(Figure(words[-1], " ".join(words[:-1]) or NATURAL))
        assert figures[-1].thing in world.things
    said["figures"] = tuple(figures)
    return said


@pytest.mark.parametrize("split", SPLITS)
def test_every_word_of_a_caption_is_true(world: World, split: str) -> None:
    _, captions, drawn = CompositionDataset(world, 5, split).batch(0, 800)
    for caption, attributes in zip(captions, drawn, strict=True):
        said = read(caption, world)
        for aspect, value in said.items():
            assert getattr(attributes, aspect) == value, (caption, attributes)
        # What is always said.
        must = {"figures"}
        must |= {"background"} if attributes.background != PLAIN else set()
        must |= {"count"} if attributes.count > 1 else set()
        must |= {"relation"} if attributes.is_pair else set()
        must |= {"pose"} if attributes.pose != "upright" else set()
        alone = attributes.count == 1 and not attributes.is_pair
        must |= {"size"} if alone and attributes.size in ("small", "tiny") else set()
        assert must <= set(said), (caption, attributes)


def test_about_half_of_the_captions_name_no_style_and_many_are_plain(world: World) -> None:
    captions = CompositionDataset(world).batch(0, 2000)[1]
    assert 0.4 < sum(" style" in caption for caption in captions) / 2000 < 0.6
    plain = re.compile(rf"(?:an? )?(?:(?:{'|'.join(world.colours)}) )?(?:{'|'.join(world.things)})")
    assert sum(bool(plain.fullmatch(caption)) for caption in captions) / 2000 > 0.07


def test_articles(world: World) -> None:
    captions = CompositionDataset(world).batch(0, 2000)[1]
    text = "\n".join(captions)
    assert "a unit" in text
    assert "an unit" not in text
    assert "two boxes" in text
    assert not re.search(r"\b(?:an?|one|two|three|four|\d) (?:\w+ )?grapes", text)
    assert not re.search(r"\ba [aeio]", text)
    assert not re.search(r"\ban (?:[^aeiou]|uni)", text)
    on_orange = Attributes((Figure("ball"),), "plain", "orange")
    said = captions_module.write(on_orange, np.random.default_rng(0), world.vocabulary)
    assert "an orange background" in said
    assert usual_caption(on_orange, world.vocabulary) == "a ball on an orange background"
    vocabulary = world.vocabulary
    known = " ".join(
        [*grammar_words(), *world.things, *vocabulary.plurals.values(), *world.colours, *world.backgrounds]
        + [*world.styles, "big small tiny two three four 2 3 4", *vocabulary.patterns.values()]
        + [phrase for phrases in vocabulary.scenes.values() for phrase in phrases]
    )
    assert set(re.findall(r"\w+", text)) <= set(known.split())
