"""From runs to a model folder: what `smalti generate` and the services load."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from smalti.errors import InvalidInputError
from smalti.files import staged
from smalti.models import bart
from smalti.models.bart import DalleBart
from smalti.models.clip import CONFIG_FILE
from smalti.models.layers import Parameters, flatten
from smalti.models.vqgan import VQGAN
from smalti.parameters import Counts
from smalti.registry.folder import ModelFolder
from smalti.text.tokenizer import copy_text_files
from smalti.training.batches.text_tokenizer import load_tokenizer
from smalti.training.loop.run_folder import SETTINGS_FILE, read_best, read_run_settings
from smalti.training.trainers.generator import GeneratorSettings
from smalti.training.trainers.generator_run import CARRIED_FILES, TEXT_FOLDER, VQGAN_FOLDER
from smalti.training.trainers.ranker_run import TrainedRanker
from smalti.training.trainers.tokenizer import load_vqgan

Stored = Literal["float32", "float16"]
"""The type of the weights in the files; what they are computed in is up to the machine."""


def export(
    generator: Path,
    ranker: str,
    out: Path,
    *,
    name: str,
    licence: str,
    tokenizer: Path | None = None,
    description: str = "",
    source: str = "",
    defaults: Counts | None = None,
    stored: Stored = "float32",
    overwrite: bool = False,
) -> ModelFolder:
    """Writes the model folder of the best weights of a generator and a ranker, with the generator's tokenizers.

    Args:
        generator: the generator's run.
        ranker: the ranker's run, a folder in open_clip's format, or a name that open_clip fetches with its
            pretrained tag, "ViT-B-32:openai".
        out: the folder to make.
        name: the model's name.
        licence: its licence, an SPDX identifier.
        tokenizer: the tokenizer's run; it must be the one that the generator was trained with.
        description: a sentence on the model.
        source: where it is from.
        defaults: how many pictures are drawn and kept where nobody asks.
        stored: the type of the transformer's and the VQGAN's weights in the files; float16 halves them.
        overwrite: whether what is in `out` may go away.

    Raises:
        InvalidInputError: a run is not what it should be, the tokenizer is another one, or `out` is not empty.
        ModelError: a value cannot be used, or a part is missing.
        SmaltiError: the disk is full.
    """
    settings = read_run_settings(generator, GeneratorSettings)
    vqgan = VQGAN.load(generator / VQGAN_FOLDER)
    if tokenizer is not None:
        _require_same(load_vqgan(tokenizer), vqgan, tokenizer, generator)
    text = load_tokenizer(generator / TEXT_FOLDER, settings.model.max_text_length)
    config = settings.config(text.vocabulary_size, vqgan.config)
    untrained = jax.eval_shape(partial(bart.initialize, config), jax.random.key(0))
    model = DalleBart(config, _as(stored, read_best(generator, untrained)))
    write_clip = _clip_writer(ranker)
    with staged(out, overwrite) as folder:
        model.save(folder / "bart")
        copy_text_files(generator / TEXT_FOLDER, folder / "bart")
        VQGAN(vqgan.config, _as(stored, vqgan.params)).save(folder / "vqgan")
        if write_clip is not None:
            write_clip(folder / "clip")
        for file in CARRIED_FILES:
            if (generator / file).is_file():
                shutil.copyfile(generator / file, folder / file)
        ModelFolder.create(
            folder,
            name=name,
            licence=licence,
            clip=ranker if write_clip is None else None,
            description=description,
            source=source,
            sampling=settings.sampling,
            defaults=defaults,
        )
    return ModelFolder.open(out)


def _as(stored: Stored, params: Parameters) -> Parameters:
    return jax.tree.map(lambda leaf: np.asarray(leaf, stored), params)


def _clip_writer(ranker: str) -> Callable[[Path], object] | None:
    """Returns what writes the folder of a CLIP; None when it is a name that open_clip fetches."""
    folder = Path(ranker)
    if (folder / SETTINGS_FILE).is_file():
        return TrainedRanker.read(folder).write
    if (folder / CONFIG_FILE).is_file():
        return partial(shutil.copytree, folder)
    if folder.exists() or ":" not in ranker:
        raise InvalidInputError(
            "ranker",
            f"{ranker} is no ranker's run, no folder of open_clip, and no name with a tag like ViT-B-32:openai",
        )
    return None


def _require_same(asked: VQGAN, trained_with: VQGAN, tokenizer: Path, generator: Path) -> None:
    theirs, ours = flatten(asked.params), flatten(trained_with.params)
    if asked.config != trained_with.config or not all(
        np.array_equal(theirs[name], ours[name]) for name in ours
    ):
        raise InvalidInputError(
            "tokenizer",
            f"{tokenizer} is not the one that {generator} was trained with: its tokens mean other pictures",
        )
