"""How generated pictures look beside real ones: variety, copies, sharpness, wobble and the Fréchet distance."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

from smalti.models.vqgan import VQGAN
from smalti.training.data.world.composition import World
from smalti.training.evaluation.candidates import RankedCandidates
from smalti.training.evaluation.features import FeatureNetwork
from smalti.training.evaluation.looks import (
    distinct,
    frechet_distance,
    nearest_distance,
    variety,
    wobble,
)
from smalti.training.evaluation.questions import is_held_out
from smalti.training.evaluation.real_pictures import pictures_of, training_pictures
from smalti.training.evaluation.scoring import Interval, bootstrap
from smalti.training.judge.samples import round_trip
from smalti.training.similarity import sharpness
from smalti.validation import Strict

TRAINING_PICTURES = 8
"""Training pictures for each prompt; they set the unit of distances, and copies are looked for among them."""
_REAL_PICTURES = 4
"""Real pictures of each prompt in each of two sets; as many generated ones are compared with them."""
_SECOND_SET = 1_000_000
"""Number of the first draw of the second set of real pictures."""
_COPY_QUANTILE = 0.01
_MIN_DEVIATION = 1e-6


class Compared(Strict):
    """A mean over generated pictures, over real ones that passed through the tokens, and over real ones."""

    generated: Interval
    tokens: float
    real: float
    share: float
    """`generated` as a share of `real`."""


class Distances(Strict):
    """Fréchet distances to real pictures of the same prompts."""

    pictures: int
    """Number of pictures in each set."""
    generated: float
    tokens: float
    """Of other real pictures that passed through the tokens."""
    real: float
    """Of other real pictures: the distance that chance alone gives."""


class Appearance(Strict):
    """How the best pictures of all prompts look, beside real pictures of the same prompts."""

    variety: Interval
    """Mean distance between the best pictures of a prompt."""
    variety_all: Interval
    """The same among all candidates."""
    variety_real: float
    """The same among real pictures of a prompt."""
    distinct: Interval
    """Number of a prompt's candidates with different tokens."""
    sharpness: Compared
    wobble: Compared
    frechet: Distances
    copies: Interval | None
    """Share of the best pictures that copy a training picture; None without prompts of held-out combinations."""


def deviation_of(training: Float[np.ndarray, "pictures features"]) -> Float[np.ndarray, " features"]:
    """Returns the standard deviation of each feature over training pictures, the unit of all distances."""
    return np.maximum(training.astype(np.float64).std(0), _MIN_DEVIATION)


def training_features(
    network: FeatureNetwork, world: World, prompts: int
) -> Float[np.ndarray, "pictures features"]:
    """Returns the features of `TRAINING_PICTURES` training pictures for each of a number of prompts."""
    batches = training_pictures(world, TRAINING_PICTURES * prompts)
    return np.concatenate([network.features(pixels) for pixels in batches])


class AppearanceMeter:
    """Collects the pictures of one prompt after the other; keeps features, and few pixels."""

    def __init__(self, network: FeatureNetwork, world: World, prompts: int) -> None:
        """Measures training pictures.

        Args:
            network: measures how different pictures look.
            world: the world, at the resolution of the model's pictures.
            prompts: number of prompts that will be added.
        """
        self._network = network
        self._world = world
        self._training = training_features(network, world, prompts)
        self._deviation = deviation_of(self._training)
        self._best: list[Float[np.ndarray, "best features"]] = []
        self._real: list[Float[np.ndarray, "real features"]] = []
        self._second: list[UInt8[np.ndarray, "real side side 3"]] = []
        self._is_held_out: list[bool] = []
        self._figures: dict[str, list[float]] = {
            name: []
            for name in (
                "variety",
                "variety_all",
                "distinct",
                "sharpness",
                "wobble",
                "real_sharpness",
                "real_wobble",
            )
        }

    def add(self, candidates: RankedCandidates, best: Sequence[int]) -> None:
        """Measures the candidates of a prompt, and real pictures of it.

        Args:
            candidates: the candidates.
            best: indices of those that a user gets, best first.
        """
        features = self._network.features(candidates.pixels)
        chosen = candidates.pixels[list(best)]
        question = candidates.question
        real = pictures_of(self._world, question, 0, _REAL_PICTURES)
        self._best.append(features[list(best)])
        self._real.append(self._network.features(real))
        self._second.append(pictures_of(self._world, question, _SECOND_SET, _REAL_PICTURES))
        self._is_held_out.append(is_held_out(self._world, question))
        for name, value in {
            "variety": variety(features[list(best)], self._deviation),
            "variety_all": variety(features, self._deviation),
            "distinct": distinct(candidates.tokens),
            "sharpness": sharpness(chosen).mean(),
            "wobble": wobble(chosen).mean(),
            "real_sharpness": sharpness(real).mean(),
            "real_wobble": wobble(real).mean(),
        }.items():
            self._figures[name].append(float(value))

    def result(self, vqgan: VQGAN) -> Appearance:
        """Returns the figures of all pictures so far; the VQGAN reconstructs real pictures from their tokens."""
        means = {name: bootstrap(np.array(values)) for name, values in self._figures.items()}
        second = np.concatenate(self._second)
        through_tokens = round_trip(vqgan, second)
        return Appearance(
            variety=means["variety"],
            variety_all=means["variety_all"],
            variety_real=float(np.mean([variety(real, self._deviation) for real in self._real])),
            distinct=means["distinct"],
            sharpness=_compared(means["sharpness"], sharpness(through_tokens), means["real_sharpness"]),
            wobble=_compared(means["wobble"], wobble(through_tokens), means["real_wobble"]),
            frechet=self._distances(second, through_tokens),
            copies=self._copies(),
        )

    def _distances(
        self,
        second: UInt8[np.ndarray, "pictures side side 3"],
        through_tokens: UInt8[np.ndarray, "pictures side side 3"],
    ) -> Distances:
        count = min(_REAL_PICTURES, min(map(len, self._best)))
        real = np.concatenate([each[:count] for each in self._real])
        generated = np.concatenate([each[:count] for each in self._best])
        # As many real pictures as generated ones: the distance depends on the number.
        rows = np.arange(len(second)).reshape(-1, _REAL_PICTURES)[:, :count].ravel()

        def distance(features: Float[np.ndarray, "pictures features"]) -> float:
            return frechet_distance(features, real, self._deviation)

        return Distances(
            pictures=len(real),
            generated=distance(generated),
            tokens=distance(self._network.features(through_tokens[rows])),
            real=distance(self._network.features(second[rows])),
        )

    def _copies(self) -> Interval | None:
        """Returns the share of copies among the best pictures of held-out combinations.

        Only of those is a picture that equals a training picture wrong; of the others it is right.
        """
        rows = np.flatnonzero(self._is_held_out)
        if not len(rows):
            return None
        nearest = [nearest_distance(self._real[row], self._training, self._deviation) for row in rows]
        limit = np.quantile(np.concatenate(nearest), _COPY_QUANTILE)
        return bootstrap(
            np.array(
                [
                    (nearest_distance(self._best[row], self._training, self._deviation) < limit).mean()
                    for row in rows
                ]
            )
        )


def _compared(generated: Interval, tokens: Float[np.ndarray, " pictures"], real: Interval) -> Compared:
    share = generated.value / real.value if real.value else 0.0
    return Compared(generated=generated, tokens=float(tokens.mean()), real=real.value, share=share)
