"""Compiling the programs of a model ahead, by starting its engines as the services do."""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from smalti.engines.decoder import DecoderEngine
from smalti.engines.encoder import unconditional_encoding
from smalti.engines.generator.batch import DecodeBatch
from smalti.engines.generator.partition import Partition
from smalti.registry.spec import ModelSpec

Start = Callable[[], None]


def starts(spec: ModelSpec, *, slots: int, mesh: str | None = None) -> Mapping[str, Start]:
    """Returns what starts each stage of a model, which calls every program that the stage's service calls.

    Args:
        spec: the model.
        slots: number of candidates that the generator has at the same time.
        mesh: the generator's devices, as `Partition.parse` reads them; None for those of the settings.

    Raises:
        InvalidInputError: the mesh needs more devices than there are.
    """
    partition = Partition.of_settings(mesh)
    return {
        "encoder": partial(_start_encoder, spec),
        "generator": partial(_start_generator, spec, slots, partition),
        "decoder": partial(_start_decoder, spec),
    }


def _start_encoder(spec: ModelSpec) -> None:
    unconditional_encoding(spec)


def _start_generator(spec: ModelSpec, slots: int, partition: Partition) -> None:
    batch = DecodeBatch.load(spec, unconditional_encoding(spec), slots=slots, partition=partition)
    batch.warm_up(everything=True)


def _start_decoder(spec: ModelSpec) -> None:
    engine = DecoderEngine.load(spec)
    pictures = engine.decode(np.zeros((1, spec.tokens), np.int32))
    if engine.vqgan.has_encoder:
        engine.encode(pictures)
