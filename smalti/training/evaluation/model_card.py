"""The card of a model: what it draws, how it was trained and on what, how good it is, and its limits."""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import ValidationError

from smalti.errors import InvalidInputError, SmaltiError
from smalti.files import atomic_path, write_atomically
from smalti.foreign_text import load_text
from smalti.models.vqgan import VQGANConfig
from smalti.registry.folder import CARD_FILE, SAMPLES_FILE, ModelFolder
from smalti.training.data.world.description import MAX_COUNT, WorldDescription
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
from smalti.training.evaluation.recipe import Recipe, load_recipe

_CREDITS = "credits.md"
_ROLES = {
    "tokenizer": "image tokenizer (VQGAN)",
    "generator": "image-token generator",
    "ranker": "ranker (CLIP)",
    "judge": "judge, for the figures only",
}


def write_card(
    model: ModelFolder, world: WorldDescription, evaluated: Path, runs: Sequence[Path], repository: str
) -> Path:
    """Writes the card of a model and its samples to the model's folder, which does not change the revision.

    Args:
        model: the model.
        world: the world that the model was trained on.
        evaluated: folder that `smalti evaluate` wrote.
        runs: the runs from which the model was exported.
        repository: address of the folder with the page of quality, as the card links to it.

    Raises:
        InvalidInputError: the evaluation is missing or of another revision, or a run cannot be read.
        SmaltiError: the card cannot be written.
    """
    quality = _read_quality(evaluated)
    if quality.revision != model.revision:
        raise InvalidInputError(
            "evaluated",
            f"{evaluated} must be of the model's revision, {model.revision[:19]}, not of {quality.revision[:19]}; "
            "evaluate the model again",
        )
    tokens = VQGANConfig.load(model.vqgan_folder).tokens
    recipes = [load_recipe(run, tokens) for run in runs]
    credits = model.path / _CREDITS
    text = _card(
        model,
        world,
        quality,
        observations(evaluated / PAGE),
        recipes,
        load_text(credits, "model") if credits.is_file() else "",
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
        return Quality.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InvalidInputError(
            "evaluated", f"{path} cannot be read ({error.strerror}); make it with `smalti evaluate`"
        ) from None
    except ValidationError:
        raise InvalidInputError(
            "evaluated", f"{path} is damaged; make it again with `smalti evaluate`"
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
        model.manifest.description or "A small model that draws pictures from prompts, tile by tile.",
        "",
        "```",
        f'smalti generate "a blue cat on a yellow background" --model {model.name}',
        "```",
        "",
        "| | |",
        "|---|---|",
        f"| revision | `{model.revision}` |",
        f"| licence | {model.manifest.licence}; the pictures that it was trained on have their own, see below |",
        f"| size | {model.size / 2**20:.1f} MiB |",
        f"| pictures | {side} by {side} pixels |",
        f"| sampling | guidance scale {sampling.guidance_scale:g}, temperature {sampling.temperature:g}, "
        f"top-k {sampling.top_k}, top-p {sampling.top_p:g}; the best {counts.n} of {counts.candidates} by CLIP |",
        "",
        "## What it draws",
        "",
        f"One thing, up to {MAX_COUNT} copies of it, or two things beside, above or in front of each other, out of "
        f"these {len(world.things)}: {things}.",
        "",
        f"Each in its own colours or in {_listed([*world.colours, *world.shades])}; on white, or on a background in "
        f"{_listed(world.backgrounds)}{_more_backgrounds(world)}; big, small or tiny, anywhere in the "
        f"picture; in {len(world.styles)} styles "
        f"({_listed([style.word for style in world.styles])}).",
        "",
        "## Samples",
        "",
        f"![The first picture of each of {len(prompts)} prompts]({SAMPLES_FILE})",
        "",
        f"The best of {counts.candidates} pictures by CLIP, with seed 1, for each of {len(prompts)} fixed prompts; "
        f"none was picked by hand. Row by row: {'; '.join(prompts)}. The combinations from the "
        f"{_ordinal(len(quality.sheets['seen']) + 1)} on were held out from training.",
        "",
        "## Quality",
        "",
        f"Share of the best {counts.n} of {counts.candidates} pictures in which an independent classifier finds "
        "everything right that the prompt names, in percent, with the 95 % confidence interval.",
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
        f"{100 * quality.judge['tokens'].background:.0f} % of backgrounds of real pictures. "
        f"[Quality]({repository}/{PAGE}) has more figures and all pictures.",
        "",
        "## Limits",
        "",
        "* It does not know other words, sentences, a third thing, or other arrangements. Other words are replaced by "
        "the nearest known one, or left out.",
        "* It draws pictograms, not photographs, people or letters.",
        f"* Pictures are {side} pixels wide, and small parts are soft.",
        "* It was made to demonstrate and test the system, not for serious use.",
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
        "pictograms during training, with exact captions; for each thing one colour and one background are held out "
        "entirely. To train it again:",
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


def _more_backgrounds(world: WorldDescription) -> str:
    """Returns the patterns and the scenes of a world, to follow its plain backgrounds."""
    scenes = [scene.phrases[0] for scene in world.scenes.values()]
    patterns = f", {_listed(world.patterns)} too" if world.patterns else ""
    return patterns + (f", or {_listed(scenes)}" if scenes else "")


def _listed(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def _ordinal(number: int) -> str:
    suffix = {1: "st", 2: "nd", 3: "rd"}.get(number % 10 if number // 10 != 1 else 0, "th")
    return f"{number}{suffix}"
