"""The card of a model: what it is, what it was made of and how, how good it is, and where it is poor."""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import ValidationError

from smalti.errors import InvalidInputError, SmaltiError
from smalti.files import atomic_path, write_atomically
from smalti.models.vqgan import VQGANConfig
from smalti.registry.folder import CARD_FILE, SAMPLES_FILE, ModelFolder
from smalti.training.data.world.description import WorldDescription
from smalti.training.evaluation.measuring import Quality
from smalti.training.evaluation.page import (
    FIGURES,
    FIRSTS,
    KIND_NAMES,
    NOTHING_SEEN,
    PAGE,
    PICTURES,
    observations,
    percent,
)
from smalti.training.evaluation.recipe import Recipe, read_recipe

_CREDITS = "credits.md"
_ROLES = {
    "tokenizer": "image tokenizer (VQGAN)",
    "generator": "image-token generator",
    "ranker": "ranker (CLIP)",
    "judge": "judge, for the figures alone",
}


def write_card(
    model: ModelFolder, world: WorldDescription, evaluated: Path, runs: Sequence[Path], repository: str
) -> Path:
    """Writes the card of a model and its samples into the model's folder; the model's revision stays.

    Args:
        model: the model.
        world: what it was trained on.
        evaluated: the folder that `smalti evaluate` wrote.
        runs: the runs that it was exported from.
        repository: the address of the folder `docs`, where the page of quality is.

    Raises:
        InvalidInputError: the evaluation is missing or of another revision, or a run cannot be read.
        SmaltiError: the card cannot be written.
    """
    quality = _read_quality(evaluated)
    if quality.revision != model.revision:
        raise InvalidInputError(
            "evaluated",
            f"{evaluated} is of {quality.revision[:19]}, the model is {model.revision[:19]}; evaluate it",
        )
    tokens = VQGANConfig.load(model.vqgan_folder).tokens
    recipes = [read_recipe(run, tokens) for run in runs]
    credits = model.path / _CREDITS
    text = _card(
        model,
        world,
        quality,
        observations(evaluated / PAGE),
        recipes,
        credits.read_text("utf-8") if credits.is_file() else "",
        repository,
    )
    try:
        with atomic_path(model.path / SAMPLES_FILE) as partial:
            shutil.copyfile(evaluated / PICTURES / FIRSTS, partial)
        write_atomically(model.path / CARD_FILE, text)
    except OSError as error:
        raise SmaltiError(f"{model.path}: the card cannot be written ({error.strerror or error})") from error
    return model.path / CARD_FILE


def _read_quality(evaluated: Path) -> Quality:
    path = evaluated / FIGURES
    try:
        return Quality.model_validate_json(path.read_text("utf-8"))
    except OSError as error:
        raise InvalidInputError(
            "evaluated", f"{path} cannot be read ({error.strerror}); make it with `smalti evaluate`"
        ) from None
    except ValidationError:
        raise InvalidInputError(
            "evaluated", f"{path} is not what `smalti evaluate` wrote; make it again"
        ) from None


def _card(
    model: ModelFolder,
    world: WorldDescription,
    quality: Quality,
    seen: str,
    recipes: Sequence[Recipe],
    credits: str,
    repository: str,
) -> str:
    sampling, counts = model.sampling, model.defaults
    side = VQGANConfig.load(model.vqgan_folder).resolution
    things = ", ".join(thing.word for thing in world.things)
    prompts = [each.prompt for side_ in quality.sheets.values() for each in side_]
    lines = [
        "---",
        f"license: {model.manifest.licence.lower()}",
        "pipeline_tag: text-to-image",
        "library_name: smalti",
        "---",
        "",
        f"# {model.name}",
        "",
        model.manifest.description or "A small model that draws pictures from words, tile by tile.",
        "",
        "```",
        f'smalti generate "a blue cat on a yellow background" --model {model.name}',
        "```",
        "",
        "| | |",
        "|---|---|",
        f"| revision | `{model.revision}` |",
        f"| licence | {model.manifest.licence}; the pictures it learnt from have their own, see below |",
        f"| size | {model.size / 2**20:.1f} MiB |",
        f"| pictures | {side} by {side} pixels |",
        f"| drawn with | guidance scale {sampling.guidance_scale:g}, temperature {sampling.temperature:g}, "
        f"top-k {sampling.top_k}, top-p {sampling.top_p:g}; the best {counts.n} of {counts.candidates} by CLIP |",
        "",
        "## What it draws",
        "",
        f"One thing, or two side by side, of these {len(world.things)}: {things}.",
        "",
        f"Each in its own colours or in {_listed(world.colours)}, on white or on a background in "
        f"{_listed(world.backgrounds)}, big or small, in {len(world.styles)} styles "
        f"({_listed([style.word for style in world.styles])}).",
        "",
        "## Samples",
        "",
        f"![The first picture of each of {len(prompts)} prompts]({SAMPLES_FILE})",
        "",
        f"The picture that CLIP finds best of {counts.candidates}, of seed 1, for each of {len(prompts)} fixed "
        f"prompts; nothing was picked by hand. Row by row: {'; '.join(prompts)}. From the "
        f"{_ordinal(len(quality.sheets['seen']) + 1)} on they are combinations that training never had.",
        "",
        "## Quality",
        "",
        f"Shares of the best {counts.n} of {counts.candidates} pictures that an independent classifier finds right in "
        "thing, colour and background, in percent, with the 95 % interval.",
        "",
        "| prompts | right |",
        "|---|---|",
        *(
            f"| {KIND_NAMES[kind]} | {percent(result.shares['best'].everything)} |"
            for kind, result in quality.kinds.items()
        ),
        "",
        f"The classifier is right on {100 * quality.judge['tokens'].thing:.0f} % of things, "
        f"{100 * quality.judge['tokens'].colour:.0f} % of colours and "
        f"{100 * quality.judge['tokens'].background:.0f} % of backgrounds of real pictures. More figures and all "
        f"pictures: [quality]({repository}/{PAGE}).",
        "",
        "## Limits",
        "",
        "* It knows no other words, no sentences, no third thing, no place but side by side; any other word is drawn "
        "as the nearest that it knows, or left out.",
        "* It draws pictograms, no photographs, people or letters.",
        f"* Pictures are {side} pixels wide, and small parts are soft.",
        "* It was made to show and test the system, not for pictures that matter.",
        "",
        *([seen, ""] if seen != NOTHING_SEEN else []),
        "## How it was trained",
        "",
        "| part | steps | pictures seen | minutes |",
        "|---|---|---|---|",
        *(
            f"| {_ROLES.get(recipe.trains, recipe.trains)} | {recipe.steps:,} of {recipe.of:,} | "
            f"{recipe.pictures:,} | {recipe.minutes:,.0f} |"
            for recipe in recipes
        ),
        "",
        "The minutes are those of training alone, without evaluations and pauses. Pictures are composed from "
        "pictograms while training runs, with captions that are exact; for every thing one colour and one background "
        "are held out whole. To train it again:",
        "",
        "```",
        "make model",
        "make evaluate",
        "```",
    ]
    for recipe in recipes:
        title = _ROLES.get(recipe.trains, recipe.trains)
        lines += [
            "", f"<details><summary>Settings of the {title}</summary>", "", "```toml", recipe.settings.strip(), "```",
            "", "</details>",
        ]  # fmt: skip
    if credits:
        lines += ["", credits.strip()]
    return "\n".join(lines) + "\n"


def _listed(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def _ordinal(number: int) -> str:
    suffix = {1: "st", 2: "nd", 3: "rd"}.get(number % 10 if number // 10 != 1 else 0, "th")
    return f"{number}{suffix}"
