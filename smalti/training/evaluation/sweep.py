"""A sweep over sampling values: the judge's shares for each point of a grid."""

from collections.abc import Iterable, Iterator, Sequence
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
from smalti.training.evaluation.questions import PROMPT_KINDS, PromptKind, questions
from smalti.training.evaluation.scoring import Scorer, select
from smalti.training.judge.network import PictureJudge
from smalti.validation import Strict


class SweepRow(Strict):
    """Result of one choice of sampling values, as shares of pictures with everything right, over all prompts."""

    sampling: SamplingParameters
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
    base: SamplingParameters, scales: Sequence[float], temperatures: Sequence[float], top_ks: Sequence[int]
) -> list[SamplingParameters]:
    """Returns all combinations; an empty list means the model's own value.

    Raises:
        InvalidInputError: a value is out of range.
    """
    return [
        SamplingParameters.check(
            **{**base.model_dump(), "guidance_scale": scale, "temperature": temperature, "top_k": top_k}
        )
        for scale, temperature, top_k in product(
            scales or [base.guidance_scale], temperatures or [base.temperature], top_ks or [base.top_k]
        )
    ]


def sweep(
    pipeline: Pipeline,
    judge: PictureJudge,
    network: FeatureNetwork,
    world: World,
    grid: Iterable[SamplingParameters],
    prompts_per_kind: int,
    *,
    kinds: Sequence[PromptKind] = PROMPT_KINDS,
    advance: Advance = lambda done: None,
) -> Iterator[SweepRow]:
    """Generates the same prompts with each choice of values and measures them; the arguments are `evaluate`'s."""
    counts = pipeline.folder.defaults
    scorer = Scorer(judge, world, acceptable_colours(world))
    asked = {kind: questions(world, kind, prompts_per_kind) for kind in kinds}
    deviation = deviation_of(training_features(network, world, len(kinds) * prompts_per_kind))
    done = 0
    for sampling in grid:
        shares: dict[PromptKind, list[tuple[float, float, float]]] = {kind: [] for kind in kinds}
        varieties, distincts = [], []
        for kind in kinds:
            seeds = range(1, prompts_per_kind + 1)
            for candidates in generate_candidates(pipeline, asked[kind], sampling, counts.candidates, seeds):
                right = scorer(candidates.question, candidates.pixels).everything
                chosen = select(candidates.scores, "best", counts.n)
                shares[kind].append((right.mean(), right[chosen].mean(), right[chosen[0]]))
                varieties.append(variety(network.features(candidates.pixels[chosen]), deviation))
                distincts.append(distinct(candidates.tokens))
                advance(done := done + 1)
        everything = np.array([each for kind in kinds for each in shares[kind]], np.float64).mean(0)
        yield SweepRow(
            sampling=sampling,
            all=float(everything[0]),
            best=float(everything[1]),
            first=float(everything[2]),
            kinds={kind: float(np.mean([best for _, best, _ in shares[kind]])) for kind in kinds},
            variety=float(np.mean(varieties)),
            distinct=float(np.mean(distincts)),
        )


def sweep_table(rows: Sequence[SweepRow]) -> str:
    """Returns rows as a Markdown table, sorted by the share of the best pictures."""
    kinds = list(rows[0].kinds)
    names = [
        "guidance scale",
        "temperature",
        "top-k",
        "all",
        "best",
        "first",
        *(f"best: {kind}" for kind in kinds),
    ]
    names += ["variety", "different"]
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in sorted(rows, key=lambda row: -row.best):
        values = [row.all, row.best, row.first, *(row.kinds[kind] for kind in kinds)]
        cells = [f"{row.sampling.guidance_scale:g}", f"{row.sampling.temperature:g}", f"{row.sampling.top_k}"]
        cells += [f"{100 * value:.1f}" for value in values]
        lines.append("| " + " | ".join([*cells, f"{row.variety:.3f}", f"{row.distinct:.1f}"]) + " |")
    return "\n".join(lines) + "\n"
