"""From what a judge says of drawn pictures to shares with their uncertainty."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, UInt8

from smalti.engines.ranker import best
from smalti.training.data.world.composition import World
from smalti.training.evaluation.questions import Question
from smalti.training.judge.network import PictureJudge
from smalti.training.judge.samples import Place
from smalti.validation import Strict

Selection = Literal["all", "best", "first", "worst"]
SELECTIONS: tuple[Selection, ...] = get_args(Selection)

_Z = 1.959964
"""95 % of a normal distribution lie within so many deviations."""
_RESAMPLES = 10_000


@dataclass(frozen=True)
class Right:
    """What is right on the candidates of one prompt."""

    thing: Bool[np.ndarray, " candidates"]
    colour: Bool[np.ndarray, " candidates"]
    background: Bool[np.ndarray, " candidates"]

    @property
    def everything(self) -> Bool[np.ndarray, " candidates"]:
        """Where all three are right."""
        return self.thing & self.colour & self.background


class Interval(Strict):
    """A share or a difference, with the interval in which the true one lies with 95 % confidence."""

    value: float
    low: float
    high: float


class Shares(Strict):
    """The shares of pictures that are right."""

    thing: Interval
    colour: Interval
    background: Interval
    everything: Interval


class Scorer:
    """Says what is right on pictures of a question."""

    def __init__(
        self, judge: PictureJudge, world: World, acceptable: Bool[np.ndarray, "things colours colours"]
    ) -> None:
        """Keeps who judges.

        Args:
            judge: says what is on a picture.
            world: whose things, colours and backgrounds the judge knows.
            acceptable: the colours that are right for a thing's colour; see `smalti.training.data.world.lookalikes`.
        """
        self._judge = judge
        self._world = world
        self._acceptable = acceptable

    def __call__(self, question: Question, pictures: UInt8[np.ndarray, "candidates side side 3"]) -> Right:
        """Judges pictures; of two things each must be right, and on its own side."""
        places: Sequence[Place] = ("whole",) if len(question.figures) == 1 else ("left", "right")
        ground = self._world.backgrounds.index(question.background)
        parts = []
        for place, figure in zip(places, question.figures, strict=True):
            verdicts = self._judge.look(pictures, place)
            thing = self._world.things.index(figure.thing)
            colours = self._acceptable[thing, self._world.colours.index(figure.colour)]
            parts.append(
                (verdicts.things == thing, colours[verdicts.colours], verdicts.backgrounds == ground)
            )
        return Right(*(np.logical_and.reduce(each) for each in zip(*parts, strict=True)))


def select(
    scores: Sequence[float] | Float[np.ndarray, " candidates"], selection: Selection, n: int
) -> list[int]:
    """Returns the candidates of a selection by the ranker's scores: all, the best n, the first, or the others."""
    order = best(scores, len(scores))
    parts: Mapping[Selection, list[int]] = {
        "all": order, "best": order[:n], "first": order[:1], "worst": order[n:],
    }  # fmt: skip
    return parts[selection]


def shares(
    judged: Sequence[tuple[Right, Sequence[int]]],
) -> Shares:
    """Returns the shares of right pictures among the chosen candidates; every prompt counts the same."""

    def share(aspect: Callable[[Right], Bool[np.ndarray, " candidates"]]) -> Interval:
        return wilson(np.array([aspect(right)[list(chosen)].mean() for right, chosen in judged]))

    return Shares(
        thing=share(lambda right: right.thing),
        colour=share(lambda right: right.colour),
        background=share(lambda right: right.background),
        everything=share(lambda right: right.everything),
    )


def wilson(by_prompt: Float[np.ndarray, " prompts"]) -> Interval:
    """Returns the mean of the prompts' shares with Wilson's interval (1927, J. Am. Stat. Assoc. 22, p. 209).

    The number of prompts is taken for the number of observations, though there are several pictures of each: those of
    one prompt are alike, and an interval that is too wide is better than one that is too narrow.
    """
    count, mean = len(by_prompt), float(by_prompt.mean())
    scale = 1 + _Z**2 / count
    middle = (mean + _Z**2 / (2 * count)) / scale
    half = _Z * np.sqrt(mean * (1 - mean) / count + _Z**2 / (4 * count**2)) / scale
    return Interval(value=mean, low=max(float(middle - half), 0.0), high=min(float(middle + half), 1.0))


def paired_difference(differences: Float[np.ndarray, " prompts"], seed: int = 0) -> Interval:
    """Returns the mean of differences, one for each prompt, with the interval of its bootstrap over the prompts."""
    rows = np.random.default_rng(seed).integers(0, len(differences), (_RESAMPLES, len(differences)))
    low, high = np.quantile(differences[rows].mean(1), (0.025, 0.975))
    return Interval(value=float(differences.mean()), low=float(low), high=float(high))
