"""Timing the generator and the decoder with random weights, since speed does not depend on the weights."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Int

from benchmarks.measuring import Times, measure
from smalti.engines.decoder import DecoderEngine
from smalti.engines.encoding import Encoding
from smalti.engines.generator.batch import BLOCKS, DecodeBatch
from smalti.engines.generator.engine import GeneratorEngine
from smalti.engines.generator.requests import Candidate, GenerationHandle, GenerationRequest
from smalti.models import bart, vqgan
from smalti.models.bart import DalleBart, DalleBartConfig
from smalti.models.layers import unflatten
from smalti.parameters import SamplingParameters

SAMPLING = SamplingParameters(guidance_scale=16, temperature=1, top_k=256, top_p=1)
"""The defaults of min-dalle."""
DECODER = ("model/decoder/", "lm_head/")
LAYERS = "/".join(bart.DECODER_LAYERS) + "/"


def random_decoder(config: DalleBartConfig, dtype: DTypeLike) -> DalleBart:
    """Returns a model without its encoder, with random weights in the host's memory.

    All layers are views of the same values, which saves time and memory; each gets arrays of its own on the device.
    """
    numbers = np.random.default_rng(0)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name.endswith("scale"):
            return np.ones(shape, dtype)
        if LAYERS in name:
            return np.broadcast_to(draw("", shape[1:]), shape)
        return (0.02 * numbers.standard_normal(shape, np.float32)).astype(dtype)

    shapes = bart.parameter_shapes(config)
    return DalleBart(
        config,
        unflatten({name: draw(name, shape) for name, shape in shapes.items() if name.startswith(DECODER)}),
    )


def random_prompt(config: DalleBartConfig, seed: int = 1) -> Encoding:
    """Returns a random encoding of a prompt of maximum length."""
    states = np.random.default_rng(seed).standard_normal((config.max_text_length, config.d_model), np.float32)
    return Encoding(states, np.ones(config.max_text_length, np.int32))


def empty_prompt(config: DalleBartConfig) -> Encoding:
    """Returns a random encoding with two positions of text, like that of the empty prompt."""
    mask = (np.arange(config.max_text_length) < 2).astype(np.int32)
    return Encoding(random_prompt(config, 0).states, mask)


@contextmanager
def engine(model: DalleBart, slots: int, dtype: DTypeLike, blocks: int = BLOCKS) -> Iterator[GeneratorEngine]:
    """Yields an engine with compiled programs, and closes it at the end."""
    batch = DecodeBatch(model, empty_prompt(model.config), slots=slots, dtype=dtype, blocks=blocks)
    made = GeneratorEngine(batch, max_waiting=1_000_000, stall_seconds=3600)
    try:
        wait_until_ready(made)
        yield made
    finally:
        made.close()


def wait_until_ready(made: GeneratorEngine) -> None:
    """Starts an engine and waits until its programs are compiled; raises why it has failed."""
    made.start()
    while not made.ready.wait(0.5):
        if made.failure is not None:
            raise made.failure


def time_tokens(made: GeneratorEngine, prompt: Encoding, candidates: int, repeats: int) -> Times:
    """Times the generation of all tokens for a number of candidates of one prompt."""
    wanted = [Candidate(1, index, SAMPLING) for index in range(candidates)]
    return measure(lambda: made.generate(prompt, wanted), repeats)


def arrival_rate(
    made: GeneratorEngine, config: DalleBartConfig, batch_seconds: float, batches: float
) -> float:
    """Generates requests of 1 to 9 candidates that arrive at random times, each with its own prompt.

    They arrive as a Poisson process, with a third more candidates than the engine can generate. No requests wait at the
    beginning, so that slots are filled one after the other and are at different positions from then on.

    Args:
        made: the engine, idle.
        config: configuration of the model.
        batch_seconds: time of one full batch.
        batches: duration of the measurement, in multiples of `batch_seconds`, after two more to fill the slots.

    Returns:
        Tokens per second.
    """
    numbers = np.random.default_rng(3)
    prompts = [random_prompt(config, seed) for seed in range(8)]
    sizes = (1, 2, 4, 9)
    between = batch_seconds / made.slots * float(np.mean(sizes)) / 1.33
    begin = time.perf_counter()
    first, last = begin + 2 * batch_seconds, begin + (2 + batches) * batch_seconds
    drawn: list[tuple[float, int]] = []
    handles: list[GenerationHandle] = []
    readers: list[threading.Thread] = []

    def read(handle: GenerationHandle) -> None:
        try:
            for run in handle.runs():
                drawn.append((time.perf_counter(), len(run.tokens)))
        except Exception:  # Requests that run at the end are cancelled.
            if time.perf_counter() < last:
                raise

    def arrive(number: int) -> None:
        wanted = tuple(Candidate(number, index, SAMPLING) for index in range(int(numbers.choice(sizes))))
        handles.append(
            made.submit(GenerationRequest(encodings=(prompts[number % len(prompts)],), candidates=wanted))
        )
        readers.append(threading.Thread(target=read, args=(handles[-1],)))
        readers[-1].start()

    number, at = 0, begin
    while at < last:
        time.sleep(max(0.0, at - time.perf_counter()))
        arrive(number)
        number, at = number + 1, at + float(numbers.exponential(between))
    time.sleep(max(0.0, last - time.perf_counter()))
    for handle in handles:
        handle.cancel()
    for reader in readers:
        reader.join()
    return sum(count for when, count in drawn if first <= when < last) / (last - first)


def step_work(
    config: DalleBartConfig,
    slots: int,
    dtype: DTypeLike,
    *,
    int8_weights: bool = False,
    int8_cache: bool = False,
) -> tuple[float, float]:
    """Returns the number of operations and bytes that a step of all slots needs, averaged over a picture.

    Counts the decoder's products and attention with their weights, keys and values, each read once; without writes,
    embeddings, norms and sampling. In int8, each head's vector has a scale of four bytes; those of weights are not
    counted.
    """
    d_model, rows = config.d_model, 2 * slots
    layer = 6 * d_model**2 + 3 * d_model * config.decoder_ffn_dim
    weights = config.decoder_layers * layer + d_model * config.decoder_start_token_id
    positions = (config.image_length + 1) / 2
    self_attention = rows * positions
    cross_attention = slots * config.max_text_length
    attended = 2 * config.decoder_layers * d_model * (self_attention + cross_attention)
    whole = jnp.dtype(dtype).itemsize
    of_weights = 1 if int8_weights else whole
    of_cache = 1 + 4 * config.decoder_attention_heads / d_model if int8_cache else whole
    return 2 * weights * rows + 2 * attended, weights * of_weights + attended * of_cache


def random_vqgan(config: vqgan.VQGANConfig, dtype: DTypeLike = jnp.float32) -> vqgan.VQGAN:
    """Returns a VQGAN with random weights in float32, which computes in `dtype`."""
    numbers = np.random.default_rng(0)
    weights = {
        name: jnp.ones(shape)
        if name.endswith("scale")
        else jnp.asarray(0.05 * numbers.standard_normal(shape, np.float32))
        for name, shape in vqgan.parameter_shapes(config).items()
    }
    return vqgan.VQGAN(config, unflatten(weights), dtype)


def random_codes(config: vqgan.VQGANConfig, pictures: int) -> Int[np.ndarray, "pictures tokens"]:
    """Returns the random image tokens of pictures."""
    return np.random.default_rng(0).integers(0, config.n_embed, (pictures, config.tokens)).astype(np.int32)


def time_decode(config: vqgan.VQGANConfig, pictures: int, repeats: int) -> Times:
    """Times the decoding of pictures with a VQGAN of random weights."""
    decoder, tokens = DecoderEngine(random_vqgan(config)), random_codes(config, pictures)
    return measure(lambda: decoder.decode(tokens), repeats)
