"""Export of a refiner's run: into a new model, or added to one that exists."""

import shutil
from functools import partial
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from smalti.errors import InvalidInputError
from smalti.models import refiner
from smalti.models.layers import Parameters
from smalti.models.refiner import Refiner
from smalti.models.vqgan import VQGAN
from smalti.outputs import whole_folder
from smalti.registry.folder import REFINER, ModelFolder
from smalti.registry.importing import copy_files
from smalti.training.loop.run_folder import load_best
from smalti.training.trainers.refiner_inputs import codebook_digest, load_network

Stored = Literal["float32", "float16"]
"""Type of the weights in the files; the machine determines the type of the computation."""


def load_refiner(run: Path, vqgan: VQGAN) -> Refiner:
    """Loads the best weights of a refiner's run: their moving average.

    Args:
        run: the run.
        vqgan: the image tokenizer of the model that the refiner becomes a part of.

    Raises:
        InvalidInputError: the run is not a refiner's or has no checkpoint, or it was trained for other tokens.
    """
    config, digest = load_network(run)
    if codebook_digest(vqgan.codebook) != digest:
        raise InvalidInputError("refiner", f"{run} was trained for a model with another image tokenizer")
    untrained = jax.eval_shape(partial(refiner.initialize, config), jax.random.key(0))
    return Refiner(config, load_best(run, untrained))


def save_refiner(trained: Refiner, folder: Path, stored: Stored) -> None:
    """Writes a refiner into a model folder that is being made."""
    Refiner(trained.config, convert(stored, trained.params)).save(folder / REFINER)


def add_refiner(
    model: ModelFolder, run: Path, out: Path, *, stored: Stored = "float32", overwrite: bool = False
) -> ModelFolder:
    """Copies a model and gives the copy a refiner; the model's own revision stays the same.

    Args:
        model: the model; a refiner that it has is replaced.
        run: run of the refiner.
        out: the folder to make.
        stored: type of the refiner's weights in the files.
        overwrite: whether the content of `out` may be replaced.

    Raises:
        InvalidInputError: the run cannot be used, or `out` is not empty.
        ModelError: a file of the model cannot be read.
        SmaltiError: the disk is full or cannot be written.
    """
    with whole_folder(out, inputs={"model": model.path, "refiner": run}, overwrite=overwrite) as folder:
        trained = load_refiner(run, VQGAN.load(model.vqgan_folder))
        copy_files(model.path, folder)
        if model.refiner_folder is not None:
            shutil.rmtree(folder / model.refiner_folder.relative_to(model.path))
        save_refiner(trained, folder, stored)
        ModelFolder.create(
            folder,
            name=model.name,
            licence=model.manifest.licence,
            clip=model.clip_source if isinstance(model.clip_source, str) else None,
            description=model.manifest.description,
            source=model.manifest.source,
            sampling=model.sampling,
            defaults=model.defaults,
        )
    return ModelFolder.open(out)


def convert(stored: Stored, params: Parameters) -> Parameters:
    """Returns weights in the type in which files hold them."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, stored), params)
