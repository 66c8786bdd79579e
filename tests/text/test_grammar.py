"""Rewording for a model that knows counts, relations, places, poses, patterns and scenes."""

import pytest

from smalti.text.rewording import Rewriter
from smalti.text.vocabulary import Words

WORDS = Words(
    things=("cat", "dog", "grapes"),
    plurals=("grapes",),
    many={"cat": "cats", "dog": "dogs"},
    colours=("red", "green", "dark green"),
    backgrounds=("white", "blue"),
    patterns={"striped": "stripes"},
    scenes=("on a beach", "at night"),
    styles=("3d",),
    sizes=("big", "small", "tiny"),
    counts={"one": 1, "1": 1, "two": 2, "2": 2, "three": 3, "3": 3},
    places=("in the top left corner", "at the top"),
    poses=("upside down",),
    relations=("above", "in front of", "next to"),
    grammar=("a", "an", "and", "background", "in", "on", "style", "the", "with"),
    synonyms={"beach": "on a beach", "five": "three", "kitten": "cat", "atop": "above"},
)


@pytest.mark.parametrize(
    ("prompt", "drawn"),
    [
        ("three dark green cats", "three dark green cats"),
        ("2 cats on a beach", "2 cats on a beach"),
        ("a cat in front of a dog", "a cat in front of a dog"),
        ("a small cat in the top left corner at night", "a small cat in the top left corner at night"),
        ("a cat upside down on a striped blue background", "a cat upside down on a striped blue background"),
        ("a lovely kitten lying on the beach", "a cat on a beach"),
        ("five big kittens", "three cats"),
        ("a kitten atop a red dog", "a cat above a red dog"),
        ("a kitten on a blue background with stripes", "a cat on a striped blue background"),
        ("three grapes and purring", "grapes"),
        ("three cats and a dog purring", "a cat and a dog"),
    ],
)
def test_the_grammar_of_counts_relations_and_scenes(prompt: str, drawn: str) -> None:
    assert Rewriter(WORDS)(prompt).prompt == drawn
