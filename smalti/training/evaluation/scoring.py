"""Scoring: from a judge's verdicts on generated pictures to shares with confidence intervals."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, UInt8

from smalti.training.data.world.composition import World
from smalti.training.data.world.description import RELATIONS
from smalti.training.evaluation.questions import Question
from smalti.training.judge.network import PictureJudge
from smalti.training.judge.views import PAIR_REGIONS, Region
from smalti.validation import Strict

Selection = Literal["all", "best", "first", "worst"]
SELECTIONS: tuple[Selection, ...] = get_args(Selection)

_Z = 1.959964
"""95 % of a normal distribution lie within this many standard deviations."""
_RESAMPLES = 10_000


@dataclass(frozen=True)
class Correctness:
    """Whether each aspect is right in the pictures of one prompt."""

    thing: Bool[np.ndarray, " candidates"]
    colour: Bool[np.ndarray, " candidates"]
    background: Bool[np.ndarray, " candidates"]
    arrangement: Bool[np.ndarray, " candidates"]
    """How many figures there are, and how two of them stand."""

    @property
    def everything(self) -> Bool[np.ndarray, " candidates"]:
        """Mask of the pictures with all aspects right."""
        return self.thing & self.colour & self.background & self.arrangement


class Interval(Strict):
    """A share, a difference or a mean, with its 95 % confidence interval."""

    value: float
    low: float
    high: float


class Shares(Strict):
    """Shares of the pictures that are right."""

    thing: Interval
    colour: Interval
    background: Interval
    arrangement: Interval
    everything: Interval


class Scorer:
    """Scores the pictures of a question."""

    def __init__(
        self, judge: PictureJudge, world: World, acceptable: Bool[np.ndarray, "things colours colours"]
    ) -> None:
        """Makes the scorer.

        Args:
            judge: says what a picture shows.
            world: the world that the judge knows.
            acceptable: colours that count as right for each colour of each thing, from `acceptable_colours`.
        """
        self._judge = judge
        self._world = world
        self._acceptable = acceptable

    def __call__(
        self, question: Question, pictures: UInt8[np.ndarray, "candidates side side 3"]
    ) -> Correctness:
        """Judges pictures. Each of two things must be right, and in its own place."""
        is_pair = len(question.figures) == 2
        whole = self._judge.look(pictures, "whole")
        if is_pair:
            regions: Sequence[Region] = PAIR_REGIONS[question.relation]
            arrangement = whole.relations == RELATIONS.index(question.relation)
        else:
            regions = ("whole",)
            arrangement = (whole.relations == len(RELATIONS)) & (whole.counts == question.count - 1)
        things, colours = [], []
        for region, figure in zip(regions, question.figures, strict=True):
            verdicts = whole if region == "whole" else self._judge.look(pictures, region)
            thing = self._world.things.index(figure.thing)
            acceptable = self._acceptable[thing, self._world.colours.index(figure.colour)]
            things.append(verdicts.things == thing)
            colours.append(acceptable[verdicts.colours])
        return Correctness(
            thing=np.logical_and.reduce(things),
            colour=np.logical_and.reduce(colours),
            background=whole.backgrounds == self._world.backgrounds.index(question.background),
            arrangement=arrangement,
        )


def select(order: Sequence[int], selection: Selection, n: int) -> Sequence[int]:
    """Returns a part of all candidates: all, the n that are chosen first, the first alone, or all but these n."""
    parts: Mapping[Selection, Sequence[int]] = {
        "all": order, "best": order[:n], "first": order[:1], "worst": order[n:],
    }  # fmt: skip
    return parts[selection]


def shares(judged: Sequence[tuple[Correctness, Sequence[int]]]) -> Shares:
    """Returns the shares of right pictures among the chosen candidates; all prompts have the same weight."""

    def share(aspect: Callable[[Correctness], Bool[np.ndarray, " candidates"]]) -> Interval:
        return wilson(np.array([aspect(right)[list(chosen)].mean() for right, chosen in judged]))

    return Shares(
        thing=share(lambda right: right.thing),
        colour=share(lambda right: right.colour),
        background=share(lambda right: right.background),
        arrangement=share(lambda right: right.arrangement),
        everything=share(lambda right: right.everything),
    )


def wilson(by_prompt: Float[np.ndarray, " prompts"]) -> Interval:
    """Returns the mean of the prompts' shares with Wilson's interval (1927, J. Am. Stat. Assoc. 22, p. 209).

    The number of observations is the number of prompts, although each has several pictures: pictures of one prompt are
    similar, and an interval that is too wide is better than one that is too narrow.
    """
    count, mean = len(by_prompt), float(by_prompt.mean())
    scale = 1 + _Z**2 / count
    middle = (mean + _Z**2 / (2 * count)) / scale
    half = _Z * np.sqrt(mean * (1 - mean) / count + _Z**2 / (4 * count**2)) / scale
    return Interval(value=mean, low=max(float(middle - half), 0.0), high=min(float(middle + half), 1.0))


def bootstrap(by_prompt: Float[np.ndarray, " prompts"], seed: int = 0) -> Interval:
    """Returns the mean of the prompts' values, with a bootstrap interval over the prompts."""
    rows = np.random.default_rng(seed).integers(0, len(by_prompt), (_RESAMPLES, len(by_prompt)))
    low, high = np.quantile(by_prompt[rows].mean(1), (0.025, 0.975))
    return Interval(value=float(by_prompt.mean()), low=float(low), high=float(high))
