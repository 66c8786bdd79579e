"""Measuring a model: what it draws for fixed prompts, judged by a classifier that knows nothing of it."""

import datetime
import importlib.metadata
import os
import platform
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from smalti.engines.generator.requests import Candidate, GenerationHandle, GenerationRequest
from smalti.parameters import Counts, SamplingParameters
from smalti.pipeline import Pipeline
from smalti.training.data.world.composition import CompositionDataset, World
from smalti.training.data.world.lookalikes import acceptable_colours
from smalti.training.evaluation.questions import (
    KINDS,
    SHEET_PROMPTS,
    Kind,
    Question,
    questions,
    sheet_questions,
)
from smalti.training.evaluation.scoring import (
    SELECTIONS,
    Interval,
    Right,
    Scorer,
    Selection,
    Shares,
    paired_difference,
    select,
    shares,
)
from smalti.training.judge.network import Accuracy, PictureJudge, accuracy
from smalti.training.judge.samples import SampleMaker, held_out_samples, round_trip
from smalti.training.similarity import psnr, ssim
from smalti.validation import Strict

SHEET_SEED = 1
"""Of all sheets: the first seed that was tried."""
_WAITING = 512
"""Candidates that are handed to the generator ahead."""
_PACKAGES = ("smalti", "jax", "flax", "torch", "open_clip_torch", "numpy")

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Drawn:
    """The candidates of one prompt."""

    question: Question
    pixels: UInt8[np.ndarray, "candidates side side 3"]
    scores: Float[np.ndarray, " candidates"]
    """The ranker's."""


class KindResult(Strict):
    """What was measured over the prompts of one kind."""

    prompts: int
    shares: dict[Selection, Shares]
    choice: Interval
    """How much more of the best are right in everything than of all candidates."""


class SheetResult(Strict):
    """One prompt of the sheets."""

    prompt: str
    right: int
    """How many of the pictures shown the judge finds right in everything."""
    shown: int


class Reconstruction(Strict):
    """How near pictures come back from their tokens."""

    pictures: int
    psnr: float
    """In dB."""
    ssim: float


class Quality(Strict):
    """Everything that was measured of a model, and with what."""

    model: str
    revision: str
    size: int
    """Of the model's files, in bytes."""
    date: str
    versions: dict[str, str]
    machine: str
    sampling: SamplingParameters
    counts: Counts
    kinds: dict[Kind, KindResult]
    choice: Interval
    """Over all prompts, as in `KindResult`."""
    open_prompts: int
    """The prompts with right and wrong candidates, where a choice can matter."""
    open_choice: Interval | None
    """Over those prompts alone; None if there are none."""
    sheets: dict[str, tuple[SheetResult, ...]]
    judge: dict[str, Accuracy]
    """On pictures of held-out combinations: plain, from their tokens (all, big and small figures), and damaged."""
    reconstruction: Reconstruction


@dataclass(frozen=True)
class Sheets:
    """The pictures of the sheets: for each side its prompts with the best pictures, best first."""

    prompts: dict[str, list[str]]
    pixels: dict[str, list[UInt8[np.ndarray, "shown side side 3"]]]


def evaluate(
    pipeline: Pipeline,
    judge: PictureJudge,
    world: World,
    prompts_per_kind: int,
    *,
    sheet_prompts: Path = SHEET_PROMPTS,
    real_pictures: int = 512,
    advance: Advance = lambda done: None,
) -> tuple[Quality, Sheets]:
    """Draws all prompts with the model's own sampling values, and measures.

    Args:
        pipeline: the model.
        judge: says what is on a picture.
        world: at the resolution of the model's tokenizer.
        prompts_per_kind: how many prompts of each kind.
        sheet_prompts: the file with the prompts of the sheets.
        real_pictures: how many held-out pictures the judge and the tokenizer are measured on.
        advance: is told how many prompts are drawn.

    Raises:
        InvalidInputError: the world does not have what a sheet's prompt asks for.
    """
    folder, counts = pipeline.folder, pipeline.folder.defaults
    acceptable = acceptable_colours(world)
    scorer = Scorer(judge, world, acceptable)
    sides = sheet_questions(world, sheet_prompts)
    results: dict[str, tuple[SheetResult, ...]] = {}
    shown = Sheets({}, {})
    done = 0
    for side, asked in sides.items():
        rows, shown.prompts[side], shown.pixels[side] = [], [], []
        for drawn in draw(pipeline, asked, folder.sampling, counts.candidates, [SHEET_SEED] * len(asked)):
            chosen = select(drawn.scores, "best", counts.n)
            right = scorer(drawn.question, drawn.pixels[chosen]).everything
            rows.append(SheetResult(prompt=drawn.question.prompt, right=int(right.sum()), shown=len(chosen)))
            shown.prompts[side].append(drawn.question.prompt)
            shown.pixels[side].append(drawn.pixels[chosen])
            advance(done := done + 1)
        results[side] = tuple(rows)
    measured: dict[Kind, KindResult] = {}
    gained: list[float] = []
    is_open: list[bool] = []
    for kind in KINDS:
        asked = questions(world, kind, prompts_per_kind)
        judged = []
        for drawn in draw(pipeline, asked, folder.sampling, counts.candidates, range(1, len(asked) + 1)):
            judged.append((scorer(drawn.question, drawn.pixels), drawn.scores))
            advance(done := done + 1)
        gains = [_gain(right, scores, counts.n) for right, scores in judged]
        measured[kind] = _kind_result(judged, gains, counts.n)
        gained += gains
        is_open += [bool(0 < right.everything.mean() < 1) for right, _ in judged]
    vqgan = pipeline.decoder.vqgan
    maker = SampleMaker(world, acceptable)
    real = held_out_samples(maker, maker, vqgan, world.resolution, real_pictures)
    tokens, damaged = real["tokens"], real.pop("damaged")
    real |= {"big": tokens.take(~tokens.small), "small": tokens.take(tokens.small), "damaged": damaged}
    quality = Quality(
        model=folder.name,
        revision=folder.revision,
        size=folder.size,
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        versions=versions(),
        machine=machine(),
        sampling=folder.sampling,
        counts=counts,
        kinds=measured,
        choice=paired_difference(np.array(gained)),
        open_prompts=sum(is_open),
        open_choice=paired_difference(np.array(gained)[is_open]) if any(is_open) else None,
        sheets=results,
        judge={name: accuracy(judge, samples) for name, samples in real.items()},
        reconstruction=reconstruction(pipeline, world, real_pictures),
    )
    return quality, shown


def prompts_in_all(world: World, sheet_prompts: Path, prompts_per_kind: int) -> int:
    """Returns how many prompts `evaluate` draws; raises as it does."""
    return sum(map(len, sheet_questions(world, sheet_prompts).values())) + len(KINDS) * prompts_per_kind


def draw(
    pipeline: Pipeline,
    asked: Sequence[Question],
    sampling: SamplingParameters,
    candidates: int,
    seeds: Sequence[int],
) -> Iterator[Drawn]:
    """Draws the candidates of many prompts, in their order; the generator is kept busy meanwhile.

    Args:
        pipeline: the model.
        asked: the prompts; every word of them must be known to the model.
        sampling: how tokens are drawn.
        candidates: how many of each prompt.
        seeds: one for each prompt; `smalti generate` draws the same with it.
    """
    waiting: deque[tuple[Question, GenerationHandle]] = deque()
    ahead = max(_WAITING // candidates, 1)
    for start, question in enumerate(asked):
        wanted = tuple(Candidate(seeds[start], index, sampling) for index in range(candidates))
        request = GenerationRequest(pipeline.encoder.encode(question.prompt), wanted)
        waiting.append((question, pipeline.generator.submit(request)))
        if len(waiting) > ahead:
            yield _finish(pipeline, *waiting.popleft())
    while waiting:
        yield _finish(pipeline, *waiting.popleft())


def reconstruction(pipeline: Pipeline, world: World, pictures: int) -> Reconstruction:
    """Measures how near held-out pictures come back from their tokens."""
    pixels, _, _ = CompositionDataset(world, 0, "held_out").batch(0, pictures)
    back = round_trip(pipeline.decoder.vqgan, pixels)
    drawn, real = back.astype(np.float64) / 255, pixels.astype(np.float64) / 255
    return Reconstruction(
        pictures=pictures, psnr=float(psnr(drawn, real).mean()), ssim=float(ssim(drawn, real).mean())
    )


def versions() -> dict[str, str]:
    """Says with which packages the model was run."""
    packages = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), **packages}


def machine() -> str:
    """Says on what the model was run."""
    cores = len(os.sched_getaffinity(0))
    devices = jax.devices()
    accelerator = "" if devices[0].platform == "cpu" else f", {len(devices)} x {devices[0].device_kind}"
    return f"{platform.system()} {platform.machine()}, {cores} CPU cores{accelerator}"


def _finish(pipeline: Pipeline, question: Question, handle: GenerationHandle) -> Drawn:
    pixels = pipeline.decoder.decode(handle.result())
    scores = pipeline.ranker.rank(question.prompt, [Image.fromarray(picture) for picture in pixels])
    return Drawn(question, pixels, scores)


def _gain(right: Right, scores: Float[np.ndarray, " candidates"], n: int) -> float:
    """Returns how many more of the best n than of all are right in everything, as a share."""
    return float(right.everything[select(scores, "best", n)].mean() - right.everything.mean())


def _kind_result(
    judged: Sequence[tuple[Right, Float[np.ndarray, " candidates"]]], gains: Sequence[float], n: int
) -> KindResult:
    by_selection: dict[Selection, Shares] = {}
    for selection in SELECTIONS:
        chosen = [(right, select(scores, selection, n)) for right, scores in judged]
        if all(rows for _, rows in chosen):
            by_selection[selection] = shares(chosen)
    return KindResult(prompts=len(judged), shares=by_selection, choice=paired_difference(np.array(gains)))
