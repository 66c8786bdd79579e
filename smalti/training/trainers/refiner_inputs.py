"""The inputs of a refiner's training: a model, and pictures with captions.

network.json    the network's configuration, and the model that it refines for
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from smalti.errors import InvalidInputError, ModelError
from smalti.files import read_json_object, write_atomically
from smalti.models.bart import DalleBart
from smalti.models.refiner import RefinerConfig
from smalti.models.vqgan import VQGAN
from smalti.registry import library
from smalti.registry.spec import ModelSpec, find_refiner_mismatches
from smalti.text.tokenizer import TextTokenizer
from smalti.training.batches.pairs import open_pairs
from smalti.training.batches.second_pass import RefinerBatches
from smalti.training.trainers.inputs import Advance, Inputs
from smalti.training.trainers.refiner import RefinerSettings, RefinerTrainee

NETWORK_FILE = "network.json"


def prepare(settings: RefinerSettings, inputs: Inputs, run: Path, advance: Advance) -> RefinerTrainee:
    """Makes the trainee of a run.

    Args:
        settings: of the run.
        inputs: a world or Parquet shards with `image` and `caption`, and the model to refine for.
        run: folder of the run.
        advance: not called, since no pictures are encoded ahead of time.

    Raises:
        ConfigError: the sizes do not fit together, or not the model.
        InvalidInputError: the data folder cannot be used, or the model is not the one that the run began with.
        ModelError: the model cannot be used.
        SmaltiError: the disk is full or cannot be written.
    """
    spec = ModelSpec.load(library.find(inputs.model))
    folder = spec.folder
    vqgan = VQGAN.load(folder.vqgan_folder)
    if not vqgan.has_encoder:
        raise InvalidInputError("model", f"{folder.name} has no image encoder, which training needs")
    config = settings.config(spec.vqgan.embed_dim, spec.transformer.d_model)
    for problem in find_refiner_mismatches(folder.path, config, spec.transformer, spec.vqgan):
        raise InvalidInputError("model", problem)
    _keep_network(run, config, codebook_digest(vqgan.codebook))
    side = spec.resolution * config.upscale
    pairs = open_pairs(inputs.data, side, settings.batch_size, settings.seed, 1)
    batches = RefinerBatches(
        pairs.batch,
        vqgan=vqgan,
        bart=DalleBart.load(folder.bart_folder, part="encoder"),
        tokenizer=TextTokenizer.load(
            folder.text_folder,
            max_text_length=spec.transformer.max_text_length,
            normalize=spec.transformer.normalize_text,
        ),
        upscale=config.upscale,
        replaced=settings.replaced_codes,
        seed=settings.seed,
    )
    return RefinerTrainee(settings, config, pairs, batches)


def load_network(run: Path) -> tuple[RefinerConfig, str]:
    """Returns the configuration of a run's network, and the digest of the codebook that it reads.

    Raises:
        InvalidInputError: the folder is not the run of a refiner.
        ModelError: the file is damaged.
    """
    if not (run / NETWORK_FILE).is_file():
        raise InvalidInputError("refiner", f"{run} is not the run of a refiner: it has no {NETWORK_FILE}")
    file = run / NETWORK_FILE
    fields = read_json_object(file, f"{file}: missing")
    config, codebook = fields.get("config"), fields.get("codebook")
    if not isinstance(config, dict) or not isinstance(codebook, str):
        raise ModelError(f"{file}: is damaged: it must have a config and a codebook")
    return RefinerConfig.from_fields(config), codebook


def codebook_digest(codebook: Float[np.ndarray, "codes code_dim"]) -> str:
    """Returns what identifies a codebook, whether it is stored as float32 or as float16."""
    return hashlib.sha256(codebook.astype(np.float16).tobytes()).hexdigest()


def _keep_network(run: Path, config: RefinerConfig, codebook: str) -> None:
    """Writes what the export needs to know, or checks that a resumed run has the model that it began with."""
    fields: Mapping[str, Any] = {"config": config.fields(), "codebook": codebook}
    if not (run / NETWORK_FILE).is_file():
        write_atomically(run / NETWORK_FILE, json.dumps(fields, indent=2, sort_keys=True) + "\n")
    elif load_network(run) != (config, codebook):
        raise InvalidInputError("model", f"is not the one that {run} began with; give that one")
