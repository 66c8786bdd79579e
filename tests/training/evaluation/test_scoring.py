"""Scoring of pictures, and the shares of the right ones."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from jaxtyping import UInt8

from smalti.training.data.world.attributes import Attributes, Figure
from smalti.training.data.world.composition import World, compose
from smalti.training.data.world.description import NATURAL, PLAIN, RELATIONS
from smalti.training.data.world.lookalikes import acceptable_colours
from smalti.training.evaluation.measuring import _gain, _kind_result
from smalti.training.evaluation.questions import ask
from smalti.training.evaluation.scoring import Correctness, Scorer, bootstrap, select, shares, wilson
from smalti.training.judge.network import Verdicts
from smalti.training.judge.views import Region


class Oracle:
    """A judge that knows what each picture shows."""

    def __init__(self, world: World, known: Sequence[Attributes]) -> None:
        self.world = world
        self.known = {compose(world, attributes).tobytes(): attributes for attributes in known}

    def look(
        self, pictures: UInt8[np.ndarray, "pictures height width 3"], region: Region = "whole"
    ) -> Verdicts:
        drawn = [self.known[picture.tobytes()] for picture in pictures]
        seconds = ("right", "bottom", "whole")
        figures = [each.figures[-1 if region in seconds else 0] for each in drawn]
        return Verdicts(
            things=np.array([self.world.things.index(figure.thing) for figure in figures]),
            colours=np.array([self.world.colours.index(figure.colour) for figure in figures]),
            backgrounds=np.array([self.world.backgrounds.index(each.background) for each in drawn]),
            styles=np.array([self.world.styles.index(each.style) for each in drawn]),
            counts=np.array([each.count - 1 for each in drawn]),
            relations=np.array(
                [RELATIONS.index(each.relation) if each.is_pair else len(RELATIONS) for each in drawn]
            ),
        )


def judged(world: World, asked: Attributes, drawn: Sequence[Attributes]) -> Correctness:
    question = ask(world, asked.figures, asked.background, asked.size, asked.count, asked.relation)
    pictures = np.stack([compose(world, attributes) for attributes in drawn])
    return Scorer(Oracle(world, drawn), world, acceptable_colours(world))(question, pictures)


def test_pictures_of_one_thing_are_scored(world: World) -> None:
    asked = Attributes((Figure("box", "green"),), "plain", "red")
    right = judged(
        world,
        asked,
        [
            asked,
            replace(asked, style="round", size="small", offset=(8, 0)),
            replace(asked, figures=(Figure("box", "blue"),)),
            replace(asked, figures=(Figure("star", "green"),)),
            replace(asked, background="gray"),
            replace(asked, figures=(Figure("tree", "red"),), background=PLAIN),
        ],
    )
    assert right.thing.tolist() == [True, True, True, False, True, False]
    assert right.colour.tolist() == [True, True, False, True, True, False]
    assert right.background.tolist() == [True, True, True, True, False, False]
    assert right.everything.tolist() == [True, True, False, False, False, False]
    assert right.arrangement.all()


def test_number_and_relation_must_be_right(world: World) -> None:
    two = Attributes((Figure("box"),), "plain", "gray", "small", count=2)
    one, three = replace(two, count=1), replace(two, count=3)
    pair = Attributes((Figure("box"), Figure("tree")), "plain", "gray", "small", relation="above")
    beside = replace(pair, relation="beside")
    assert judged(world, two, [two, one, three, beside]).arrangement.tolist() == [True, False, False, False]
    right = judged(world, pair, [pair, beside, replace(pair, figures=pair.figures[::-1])])
    assert right.arrangement.tolist() == [True, False, True]
    assert right.everything.tolist() == [True, False, False]
    front = replace(pair, relation="in front of")
    assert judged(world, front, [front, pair]).everything.tolist() == [True, False]


def test_colours_that_look_alike_are_both_right(world: World) -> None:
    natural, red, blue = (
        Attributes((Figure("ball", colour),), "plain") for colour in (NATURAL, "red", "blue")
    )
    assert judged(world, natural, [natural, red, blue]).colour.tolist() == [True, True, False]
    assert judged(world, red, [natural, red, blue]).colour.tolist() == [True, True, False]


def test_each_of_two_things_must_be_right_on_its_own_side(world: World) -> None:
    asked = Attributes((Figure("box"), Figure("star", "blue")), "plain", "gray", "small")
    right = judged(
        world,
        asked,
        [
            asked,
            replace(asked, figures=asked.figures[::-1]),
            replace(asked, figures=(Figure("box"), Figure("star", "green"))),
        ],
    )
    assert right.thing.tolist() == [True, False, True]
    assert right.colour.tolist() == [True, False, False]
    assert right.background.tolist() == [True, True, True]


def test_shares_equal_those_computed_by_hand() -> None:
    def right(*everything: int) -> Correctness:
        whole = np.array(everything, bool)
        return Correctness(whole, *(np.ones_like(whole) for _ in range(3)))

    prompts = [(right(1, 0, 1, 0), [0, 2, 3, 1]), (right(0, 0, 1, 1), [1, 3, 0, 2])]
    values = {}
    for selection in ("all", "best", "first", "worst"):
        chosen = [(each, select(order, selection, 2)) for each, order in prompts]
        values[selection] = shares(chosen).everything.value
        assert shares(chosen).colour.value == 1
    assert values == {"all": 0.5, "best": (1 + 0.5) / 2, "first": 0.5, "worst": (0 + 0.5) / 2}


def test_intervals() -> None:
    interval = wilson(np.array([1.0] * 8 + [0.0] * 2))
    # Computed by hand for 8 of 10.
    assert (interval.value, interval.low, interval.high) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    certain = wilson(np.ones(10))
    assert certain.high == pytest.approx(1)
    assert certain.low == pytest.approx(0.7225, abs=1e-4)
    # 0.1 with a deviation of 0.2 over 400 prompts: its own is 0.01.
    differences = np.tile([0.3, -0.1], 200)
    difference = bootstrap(differences)
    assert difference.value == pytest.approx(0.1)
    assert (difference.low, difference.high) == pytest.approx((0.1 - 0.0196, 0.1 + 0.0196), abs=0.002)


def test_the_value_of_the_choice_is_counted_by_prompt() -> None:
    def right(*everything: int) -> Correctness:
        whole = np.array(everything, bool)
        return Correctness(whole, whole, whole, whole)

    order = [0, 1, 2, 3]
    judged = [(right(1, 1, 0, 0), order), (right(1, 1, 1, 1), order), (right(0, 1, 1, 0), order)]
    gains = [_gain(each, order[:2]) for each, order in judged]
    assert gains == [0.5, 0, 0]
    result = _kind_result(judged, gains, 2)
    assert result.choice.value == pytest.approx(0.5 / 3)
    assert result.shares["best"].everything.value == pytest.approx(2.5 / 3)
    assert result.shares["worst"].everything.value == pytest.approx(1.5 / 3)
    # All candidates are kept, so none is left out.
    assert "worst" not in _kind_result(judged, gains, 4).shares
