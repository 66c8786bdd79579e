"""What a prompt leaves open is said for each candidate, and what it says is kept."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from smalti.testing.words import SMALL_WORLD
from smalti.text.rewording import Rewriter
from smalti.text.vocabulary import Words

rewriter = Rewriter(SMALL_WORLD)
STYLES = (" in flat style", " in twemoji style")
FIRST = (
    "a big cat in twemoji style",
    "a small cat at the bottom in flat style",
    "a big cat in twemoji style",
    "a small cat at the bottom in twemoji style",
)
"""The wordings of the first candidates of seed 7."""
LAYOUTS = ("a big cat", "a small cat in the top left corner", "a small cat at the bottom")


def wordings(prompt: str, seed: int = 7, candidates: int = 64) -> set[str]:
    return set(rewriter.wordings(prompt, seed, range(candidates)))


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a cat", {layout + style for layout in LAYOUTS for style in STYLES}),
        # What the prompt names stays, and nothing is added that would contradict it.
        ("a cat in flat style", {layout + " in flat style" for layout in LAYOUTS}),
        ("a big cat", {"a big cat" + style for style in STYLES}),
        (
            "a small cat, flat style",
            {f"a small cat {place}, flat style" for place in ("in the top left corner", "at the bottom")},
        ),
        ("a cat at the bottom", {"a small cat at the bottom" + style for style in STYLES}),
        ("a small cat at the bottom", {"a small cat at the bottom" + style for style in STYLES}),
        # There are no big things at the bottom.
        ("a big cat at the bottom", {"a big cat at the bottom" + style for style in STYLES}),
        # Two things have no layout.
        ("a cat and a dog", {"a cat and a dog" + style for style in STYLES}),
        ("a red cat in flat style, on a blue background", {
            "a big red cat in flat style, on a blue background",
            "a small red cat in the top left corner in flat style, on a blue background",
            "a small red cat at the bottom in flat style, on a blue background",
        }),
        # A word of several tokens, an article that changes, and none.
        ("an apple, flat style", {
            "a big apple, flat style",
            "a small apple in the top left corner, flat style",
            "a small apple at the bottom, flat style",
        }),
        ("an ice cream in flat style", {
            "a big ice cream in flat style",
            "a small ice cream in the top left corner in flat style",
            "a small ice cream at the bottom in flat style",
        }),
        ("grapes, flat style", {
            "big grapes, flat style",
            "small grapes in the top left corner, flat style",
            "small grapes at the bottom, flat style",
        }),
    ],
)  # fmt: skip
def test_what_is_left_open_is_said_and_what_is_said_is_kept(prompt: str, expected: set[str]) -> None:
    assert wordings(prompt) == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        # Several copies and two things have a layout of their own.
        ("three cat, flat style", {"three cat, flat style"}),
        ("a cat in front of a dog in flat style", {"a cat in front of a dog in flat style"}),
        # A pose belongs to its thing.
        ("a red cat upside down, flat style", {
            "a big red cat upside down, flat style",
            "a small red cat upside down in the top left corner, flat style",
            "a small red cat upside down at the bottom, flat style",
        }),
        ("an upside down cat in flat style", {
            "an upside down big cat in flat style",
            "an upside down small cat in the top left corner in flat style",
            "an upside down small cat at the bottom in flat style",
        }),
    ],
)  # fmt: skip
def test_numbers_relations_and_poses_keep_their_layout(prompt: str, expected: set[str]) -> None:
    larger = SMALL_WORLD.model_copy(
        update={"counts": {"three": 3}, "poses": ("upside down",), "relations": ("in front of",)}
    )
    assert set(Rewriter(larger).wordings(prompt, 7, range(64))) == expected


def test_a_wording_follows_from_seed_and_candidate_alone() -> None:
    whole = rewriter.wordings("a cat", 7, range(64))
    assert rewriter.wordings("a cat", 7, [40, 3]) == (whole[40], whole[3])
    assert Rewriter(SMALL_WORLD).wordings("a cat", 7, range(64)) == whole
    assert rewriter.wordings("a cat", 8, range(64)) != whole
    # Fixed for ever, on every machine: a picture can be drawn again from its record.
    assert whole[:4] == FIRST


def test_even_a_few_candidates_have_all_values_in_their_shares() -> None:
    for seed in range(20):
        few = rewriter.wordings("a cat", seed, range(12))
        styles = Counter(each.split()[-2] for each in few)
        sizes = Counter(each.split()[1] for each in few)
        assert abs(styles["twemoji"] - 8) <= 2
        assert abs(sizes["big"] - 6) <= 2


@settings(deadline=None)
@given(st.integers(0, 2**63 - 1), st.integers(0, 2**20 - 1))
def test_every_seed_and_candidate_has_a_wording(seed: int, candidate: int) -> None:
    (wording,) = rewriter.wordings("a cat", seed, [candidate])
    assert wording in {layout + style for layout in LAYOUTS for style in STYLES}


def test_every_wording_consists_of_known_words() -> None:
    for prompt in ("a cat", "a hippo on yellow", "two red hearts", "a cat and a dog"):
        for wording in wordings(rewriter(prompt).prompt):
            assert rewriter(wording).prompt == wording
            assert rewriter(wording).notice == ""


def test_a_model_without_a_list_encodes_the_prompt_as_it_is() -> None:
    silent = Rewriter(SMALL_WORLD.model_copy(update={"variation": None}))
    for each in (silent, Rewriter(None)):
        assert each.wordings("a cat", 7, range(3)) == ("a cat",) * 3


@pytest.mark.parametrize(
    ("variation", "problem"),
    [
        ({"styles": {"oil": 1}}, "'oil', which is not a known style"),
        ({"layouts": [{"size": "huge"}]}, "'huge', which is not a known size"),
        ({"layouts": [{"place": "up"}]}, "'up', which is not a known place"),
        ({"styles": {"flat": 0}}, "greater than 0"),
    ],
)
def test_a_list_with_unknown_words_is_refused(variation: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        Words.model_validate({**SMALL_WORLD.model_dump(), "variation": variation})
