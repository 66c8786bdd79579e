"""A sweep over sampling values: the judge's shares for each point of a grid."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product

import numpy as np

from smalti.parameters import SamplingParameters
from smalti.pipeline import Pipeline
from smalti.training.data.world.composition import World
from smalti.training.data.world.lookalikes import acceptable_colours
from smalti.training.evaluation.appearance import deviation_of, training_features
from smalti.training.evaluation.candidates import generate_candidates
from smalti.training.evaluation.features import FeatureNetwork
from smalti.training.evaluation.looks import distinct, variety
from smalti.training.evaluation.measuring import Advance
from smalti.training.evaluation.questions import PromptKind, kinds_of, questions
from smalti.training.evaluation.scoring import Scorer
from smalti.training.judge.network import PictureJudge
from smalti.validation import Strict

_ALWAYS_SHOWN = ("guidance_scale", "temperature", "top_k")


class SweepRow(Strict):
    """Result of one choice of sampling values, as shares of pictures with everything right, over all prompts."""

    sampling: SamplingParameters
    vary: bool = False
    diversity: float = 0.0
    all: float
    best: float
    first: float
    kinds: dict[PromptKind, float]
    """Share of the best pictures, by kind of prompt."""
    variety: float
    """Mean distance between the best pictures of a prompt, as `smalti evaluate` measures it."""
    distinct: float
    """Mean number of a prompt's candidates with different tokens."""


def sampling_grid(
    base: SamplingParameters, values: Mapping[str, Sequence[float]]
) -> list[SamplingParameters]:
    """Returns all combinations of values by name; a name without values has the model's own.

    Raises:
        InvalidInputError: a value is out of range.
    """
    names = [name for name, tried in values.items() if tried]
    return [
        base.replace(**dict(zip(names, combination, strict=True)))
        for combination in product(*(values[name] for name in names))
    ]


def sweep(
    pipeline: Pipeline,
    judge: PictureJudge,
    network: FeatureNetwork,
    world: World,
    grid: Iterable[SamplingParameters],
    prompts_per_kind: int,
    *,
    vary: bool = False,
    diversities: Sequence[float] = (0.0,),
    advance: Advance = lambda done: None,
) -> Iterator[SweepRow]:
    """Generates the same prompts with each choice of values and measures them.

    Args:
        pipeline: the model.
        judge: says what a picture shows.
        network: measures how different pictures look.
        world: the world, at the resolution of the model's image tokenizer.
        grid: sampling values.
        prompts_per_kind: number of prompts of each kind.
        vary: whether candidates differ in what the prompt leaves open.
        diversities: weights of difference in the choice of pictures; all are tried on the same candidates.
        advance: called with the number of prompts generated so far.
    """
    counts = pipeline.folder.defaults
    kinds = kinds_of(world)
    scorer = Scorer(judge, world, acceptable_colours(world))
    asked = {kind: questions(world, kind, prompts_per_kind) for kind in kinds}
    deviation = deviation_of(training_features(network, world, len(kinds) * prompts_per_kind))
    done = 0
    for sampling in grid:
        tallies = [_Tally(kinds) for _ in diversities]
        for kind in kinds:
            seeds = range(1, prompts_per_kind + 1)
            for candidates in generate_candidates(
                pipeline, asked[kind], sampling, counts.candidates, seeds, vary=vary
            ):
                right = scorer(candidates.question, candidates.pixels).everything
                for diversity, tally in zip(diversities, tallies, strict=True):
                    chosen = candidates.order(diversity)[: counts.n]
                    tally.shares[kind].append((right.mean(), right[chosen].mean(), right[chosen[0]]))
                    tally.varieties.append(variety(network.features(candidates.pixels[chosen]), deviation))
                    tally.distincts.append(distinct(candidates.tokens))
                advance(done := done + 1)
        for diversity, tally in zip(diversities, tallies, strict=True):
            yield tally.row(sampling, vary, diversity)


class _Tally:
    """What is measured of each prompt, for one choice of values."""

    def __init__(self, kinds: Sequence[PromptKind]) -> None:
        self.shares: dict[PromptKind, list[tuple[float, float, float]]] = {kind: [] for kind in kinds}
        self.varieties: list[float] = []
        self.distincts: list[float] = []

    def row(self, sampling: SamplingParameters, vary: bool, diversity: float) -> SweepRow:
        """Returns the means over the prompts."""
        everything = np.array([each for shares in self.shares.values() for each in shares], np.float64).mean(
            0
        )
        return SweepRow(
            sampling=sampling,
            vary=vary,
            diversity=diversity,
            all=float(everything[0]),
            best=float(everything[1]),
            first=float(everything[2]),
            kinds={
                kind: float(np.mean([best for _, best, _ in shares])) for kind, shares in self.shares.items()
            },
            variety=float(np.mean(self.varieties)),
            distinct=float(np.mean(self.distincts)),
        )


def sweep_table(rows: Sequence[SweepRow]) -> str:
    """Returns rows as a Markdown table, sorted by the share of the best pictures."""
    kinds = list(rows[0].kinds)
    values = [{**row.sampling.every_value(), "vary": row.vary, "diversity": row.diversity} for row in rows]
    # Others only if they were tried.
    tried = [
        name
        for name in values[0]
        if name in _ALWAYS_SHOWN or any(each[name] != values[0][name] for each in values)
    ]
    names = [name.replace("_", " ").replace("top ", "top-") for name in tried]
    names += ["all", "best", "first", *(f"best: {kind}" for kind in kinds), "variety", "different"]
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row, value in sorted(zip(rows, values, strict=True), key=lambda pair: -pair[0].best):
        shares = [row.all, row.best, row.first, *(row.kinds[kind] for kind in kinds)]
        cells = [f"{value[name]:g}" for name in tried]
        cells += [f"{100 * share:.1f}" for share in shares]
        lines.append("| " + " | ".join([*cells, f"{row.variety:.3f}", f"{row.distinct:.1f}"]) + " |")
    return "\n".join(lines) + "\n"
