"""Measuring a model: pictures of fixed prompts, judged by a classifier that has never seen the model."""

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jaxtyping import UInt8

from smalti.parameters import Defaults, SamplingParameters
from smalti.pipeline import Pipeline
from smalti.training.data.world.composition import CompositionDataset, World
from smalti.training.data.world.description import SIZES
from smalti.training.data.world.lookalikes import acceptable_colours
from smalti.training.evaluation.appearance import Appearance, AppearanceMeter
from smalti.training.evaluation.candidates import generate_candidates
from smalti.training.evaluation.features import FeatureNetwork
from smalti.training.evaluation.questions import (
    SHEET_PROMPTS,
    PromptKind,
    kinds_of,
    questions,
    sheet_questions,
)
from smalti.training.evaluation.scoring import (
    SELECTIONS,
    Correctness,
    Interval,
    Scorer,
    Selection,
    Shares,
    bootstrap,
    select,
    shares,
)
from smalti.training.judge.network import Accuracy, PictureJudge, accuracy
from smalti.training.judge.samples import SampleMaker, held_out_samples, round_trip
from smalti.training.similarity import psnr, ssim
from smalti.validation import Strict

SHEET_SEED = 1
"""Seed of all sheets: the first one that was tried."""
_PACKAGES = ("smalti", "jax", "flax", "torch", "open_clip_torch", "numpy")

Advance = Callable[[int], None]
"""Called with the number of prompts generated so far."""


class KindResult(Strict):
    """Results over the prompts of one kind."""

    prompts: int
    shares: dict[Selection, Shares]
    choice: Interval
    """Share of the best pictures with everything right, minus that share of all candidates."""


class SheetResult(Strict):
    """Result of one prompt of the sheets."""

    prompt: str
    right: int
    """Number of the shown pictures in which the judge finds everything right."""
    shown: int


class Reconstruction(Strict):
    """Similarity of pictures and their reconstructions from tokens."""

    pictures: int
    psnr: float
    """Peak signal-to-noise ratio in dB."""
    ssim: float


class Quality(Strict):
    """All results of an evaluation, with the circumstances."""

    model: str
    revision: str
    size: int
    """Size of the model's files in bytes."""
    date: str
    versions: dict[str, str]
    machine: str
    sampling: SamplingParameters
    counts: Defaults
    kinds: dict[PromptKind, KindResult]
    choice: Interval
    """`KindResult.choice` over all prompts."""
    open_prompts: int
    """Number of prompts with both right and wrong candidates, where the choice matters."""
    open_choice: Interval | None
    """`KindResult.choice` over those prompts; None if there are none."""
    sheets: dict[str, tuple[SheetResult, ...]]
    judge: dict[str, Accuracy]
    """Accuracy on held-out combinations: plain, reconstructed (all, and by size of the figure), and damaged."""
    reconstruction: Reconstruction
    appearance: Appearance


@dataclass(frozen=True)
class Sheets:
    """Pictures of the sheets: the prompts of each set with their best pictures, best first."""

    prompts: dict[str, list[str]]
    pixels: dict[str, list[UInt8[np.ndarray, "shown side side 3"]]]


def evaluate(
    pipeline: Pipeline,
    judge: PictureJudge,
    network: FeatureNetwork,
    world: World,
    prompts_per_kind: int,
    *,
    sheet_prompts: Path = SHEET_PROMPTS,
    real_pictures: int = 512,
    advance: Advance = lambda done: None,
) -> tuple[Quality, Sheets]:
    """Generates pictures of all prompts with the model's own sampling values, and measures them.

    Args:
        pipeline: the model.
        judge: says what a picture shows.
        network: measures how different pictures look.
        world: the world, at the resolution of the model's image tokenizer.
        prompts_per_kind: number of prompts of each kind.
        sheet_prompts: file with the prompts of the sheets.
        real_pictures: number of held-out pictures that measure the judge and the image tokenizer.
        advance: called with the number of prompts generated so far.

    Raises:
        InvalidInputError: the world lacks something that a prompt of the sheets asks for.
    """
    kinds = kinds_of(world)
    folder, counts = pipeline.folder, pipeline.folder.defaults
    draw = partial(
        generate_candidates,
        pipeline,
        sampling=folder.sampling,
        candidates=counts.candidates,
        vary=counts.vary,
    )
    acceptable = acceptable_colours(world)
    scorer = Scorer(judge, world, acceptable)
    sides = sheet_questions(world, sheet_prompts)
    results: dict[str, tuple[SheetResult, ...]] = {}
    shown = Sheets({}, {})
    done = 0
    for side, asked in sides.items():
        rows, shown.prompts[side], shown.pixels[side] = [], [], []
        seeds = [SHEET_SEED] * len(asked)
        for candidates in draw(asked, seeds=seeds):
            prompt = candidates.question.prompt
            chosen = candidates.order(counts.diversity)[: counts.n]
            right = scorer(candidates.question, candidates.pixels[chosen]).everything
            rows.append(SheetResult(prompt=prompt, right=int(right.sum()), shown=len(chosen)))
            shown.prompts[side].append(prompt)
            shown.pixels[side].append(candidates.pixels[chosen])
            advance(done := done + 1)
        results[side] = tuple(rows)
    measured: dict[PromptKind, KindResult] = {}
    appearance = AppearanceMeter(network, world, len(kinds) * prompts_per_kind)
    gained: list[float] = []
    is_open: list[bool] = []
    for kind in kinds:
        asked = questions(world, kind, prompts_per_kind)
        judged = []
        numbers = range(1, len(asked) + 1)
        for candidates in draw(asked, seeds=numbers):
            order = candidates.order(counts.diversity)
            judged.append((scorer(candidates.question, candidates.pixels), order))
            appearance.add(candidates, order[: counts.n])
            advance(done := done + 1)
        gains = [_gain(right, order[: counts.n]) for right, order in judged]
        measured[kind] = _kind_result(judged, gains, counts.n)
        gained += gains
        is_open += [bool(0 < right.everything.mean() < 1) for right, _ in judged]
    vqgan = pipeline.decoder.vqgan
    maker = SampleMaker(world, acceptable)
    real = held_out_samples(maker, maker, vqgan, world.resolution, real_pictures)
    tokens, damaged = real["tokens"], real.pop("damaged")
    for index, size in enumerate(SIZES):
        if (tokens.sizes == index).any():
            real[size] = tokens.take(tokens.sizes == index)
    real["damaged"] = damaged
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
        choice=bootstrap(np.array(gained)),
        open_prompts=sum(is_open),
        open_choice=bootstrap(np.array(gained)[is_open]) if any(is_open) else None,
        sheets=results,
        judge={name: accuracy(judge, samples) for name, samples in real.items()},
        reconstruction=reconstruction(pipeline, world, real_pictures),
        appearance=appearance.result(vqgan),
    )
    return quality, shown


def count_prompts(world: World, sheet_prompts: Path, prompts_per_kind: int) -> int:
    """Returns the number of prompts that `evaluate` generates; raises what it raises."""
    return (
        sum(map(len, sheet_questions(world, sheet_prompts).values()))
        + len(kinds_of(world)) * prompts_per_kind
    )


def reconstruction(pipeline: Pipeline, world: World, pictures: int) -> Reconstruction:
    """Measures the similarity of held-out pictures and their reconstructions."""
    pixels, _, _ = CompositionDataset(world, 0, "held_out").batch(0, pictures)
    back = round_trip(pipeline.decoder.vqgan, pixels)
    reconstructed, real = back.astype(np.float64) / 255, pixels.astype(np.float64) / 255
    return Reconstruction(
        pictures=pictures,
        psnr=float(psnr(reconstructed, real).mean()),
        ssim=float(ssim(reconstructed, real).mean()),
    )


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the main packages."""
    packages = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), **packages}


def machine() -> str:
    """Describes the machine."""
    cores = len(os.sched_getaffinity(0))
    devices = jax.devices()
    accelerator = "" if devices[0].platform == "cpu" else f", {len(devices)} x {devices[0].device_kind}"
    return f"{platform.system()} {platform.machine()}, {cores} CPU cores{accelerator}"


def _gain(right: Correctness, chosen: Sequence[int]) -> float:
    """Returns the share of the chosen candidates with everything right, minus that share of all candidates."""
    return float(right.everything[list(chosen)].mean() - right.everything.mean())


def _kind_result(
    judged: Sequence[tuple[Correctness, Sequence[int]]], gains: Sequence[float], n: int
) -> KindResult:
    by_selection: dict[Selection, Shares] = {}
    for selection in SELECTIONS:
        chosen = [(right, select(order, selection, n)) for right, order in judged]
        if all(rows for _, rows in chosen):
            by_selection[selection] = shares(chosen)
    return KindResult(prompts=len(judged), shares=by_selection, choice=bootstrap(np.array(gains)))
