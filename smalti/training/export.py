"""Export of runs as a model folder, which `smalti generate` and the services load."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np

from smalti.errors import InvalidInputError
from smalti.models import bart
from smalti.models.bart import DalleBart
from smalti.models.clip import CONFIG_FILE
from smalti.models.layers import flatten
from smalti.models.vqgan import VQGAN
from smalti.outputs import whole_folder
from smalti.parameters import Defaults
from smalti.registry.folder import ModelFolder
from smalti.text.tokenizer import copy_text_files
from smalti.training.batches.text_tokenizer import load_tokenizer
from smalti.training.loop.run_folder import SETTINGS_FILE, load_best, load_run_settings
from smalti.training.refiner_export import Stored, convert, load_refiner, save_refiner
from smalti.training.trainers.generator import GeneratorSettings
from smalti.training.trainers.generator_inputs import CARRIED_FILES
from smalti.training.trainers.inputs import TEXT_FOLDER, VQGAN_FOLDER
from smalti.training.trainers.ranker_export import TrainedRanker
from smalti.training.trainers.tokenizer import load_vqgan, sizes_of_codes
from smalti.training.trainers.tokenizer_objective import CODES


def export(
    generator: Path,
    ranker: str,
    out: Path,
    *,
    name: str,
    licence: str,
    tokenizer: Path | None = None,
    refiner: Path | None = None,
    description: str = "",
    source: str = "",
    defaults: Defaults | None = None,
    stored: Stored = "float32",
    overwrite: bool = False,
) -> ModelFolder:
    """Writes a model folder with the best weights of a generator and a ranker, and the generator's tokenizers.

    Args:
        generator: run of the generator.
        ranker: run of the ranker, a folder in open_clip's format, or the name and pretrained tag of a model that
            open_clip downloads, such as "ViT-B-32:openai".
        out: the folder to make.
        name: name of the model.
        licence: licence of the model, an SPDX identifier.
        tokenizer: run of the tokenizer, whose decoder is exported. It must make the tokens that the generator was
            trained with. By default the generator's own.
        refiner: run of a refiner for a model with the same image tokenizer; None for a model without a refiner.
        description: one sentence about the model.
        source: where the model comes from.
        defaults: what a request gets that does not say otherwise.
        stored: type of the transformer's and the VQGAN's weights in the files; float16 halves the files.
        overwrite: whether the content of `out` may be replaced.

    Raises:
        InvalidInputError: a run cannot be used, the tokenizer is another one, or `out` is not empty.
        ModelError: a value is invalid, or a part is missing.
        SmaltiError: the disk is full or cannot be written.
    """
    with whole_folder(
        out,
        inputs={"generator": generator, "ranker": ranker, "tokenizer": tokenizer, "refiner": refiner},
        overwrite=overwrite,
    ) as folder:
        settings = load_run_settings(generator, GeneratorSettings)
        vqgan = VQGAN.load(generator / VQGAN_FOLDER)
        if tokenizer is not None:
            given = load_vqgan(tokenizer)
            _require_same_codes(given, vqgan, tokenizer, generator)
            vqgan = given
        text = load_tokenizer(generator / TEXT_FOLDER, settings.model.max_text_length)
        config = settings.config(text.vocabulary_size, vqgan.config)
        untrained = jax.eval_shape(partial(bart.initialize, config), jax.random.key(0))
        model = DalleBart(config, convert(stored, load_best(generator, untrained)))
        write_clip = _clip_writer(ranker)
        trained_refiner = None if refiner is None else load_refiner(refiner, vqgan)
        model.save(folder / "bart")
        copy_text_files(generator / TEXT_FOLDER, folder / "bart")
        VQGAN(vqgan.config, convert(stored, vqgan.params)).save(folder / "vqgan")
        if write_clip is not None:
            write_clip(folder / "clip")
        if trained_refiner is not None:
            save_refiner(trained_refiner, folder, stored)
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


def _clip_writer(ranker: str) -> Callable[[Path], object] | None:
    """Returns a function that writes the CLIP's folder, or None for a model that open_clip downloads."""
    folder = Path(ranker)
    if (folder / SETTINGS_FILE).is_file():
        return TrainedRanker.load(folder).write
    if (folder / CONFIG_FILE).is_file():
        return partial(shutil.copytree, folder)
    if folder.exists() or ":" not in ranker:
        raise InvalidInputError(
            "ranker",
            f"{ranker} must be a ranker's run, a folder in open_clip's format, or a name with a tag: ViT-B-32:openai",
        )
    return None


def _require_same_codes(given: VQGAN, trained_with: VQGAN, tokenizer: Path, generator: Path) -> None:
    """Raises `InvalidInputError` if two tokenizers do not make the same tokens; their decoders may differ."""
    theirs, ours = (
        {name: leaf for name, leaf in flatten(each.params).items() if name.startswith(CODES)}
        for each in (given, trained_with)
    )
    if sizes_of_codes(given.config) != sizes_of_codes(trained_with.config) or not all(
        np.array_equal(theirs[name], ours[name]) for name in ours
    ):
        raise InvalidInputError(
            "tokenizer",
            f"must be the one that {generator} was trained with, not {tokenizer}",
        )
