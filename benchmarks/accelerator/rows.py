"""The measurements, each of which runs in a process of its own."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
from jax.typing import DTypeLike

from benchmarks import generating
from benchmarks.accelerator import checks
from benchmarks.accelerator.attention import time_attention
from benchmarks.accelerator.listing import ROWS
from benchmarks.accelerator.plan import Plan
from benchmarks.accelerator.results import Check, Limit, Timing
from benchmarks.measuring import Times, measure, measure_limits
from smalti.engines.decoder import DecoderEngine
from smalti.engines.generator.batch import BLOCKS, DecodeBatch
from smalti.engines.generator.engine import GeneratorEngine
from smalti.engines.generator.partition import INT8_CACHE, INT8_WEIGHTS, Partition
from smalti.models import vqgan

Result = Check | Limit | Timing


def limits(plan: Plan) -> Iterator[Result]:
    """Measures the device's limits."""
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}, jax {jax.__version__}"
    for dtype in (jnp.bfloat16, jnp.float32):
        found = measure_limits(dtype, side=plan.side, size=plan.reading)
        yield Limit(
            limit=jnp.dtype(dtype).name,
            operations=found.operations,
            bandwidth=found.bandwidth,
            device=device,
        )


def golden(plan: Plan) -> Iterator[Result]:
    """Compares with the golden values."""
    yield from checks.golden()


def tokens(
    plan: Plan,
    shape: str,
    slots: int,
    *,
    blocks: int = BLOCKS,
    int8: Sequence[str] = (),
    layout: str = "",
    variant: str = "",
) -> Iterator[Result]:
    """Times the tokens of a full batch, with random parameters; the smallest batch checks determinism too.

    Args:
        plan: the sizes.
        shape: name of the model's shape.
        slots: number of slots.
        blocks: maximum number of blocks in self-attention.
        int8: what is kept as int8, `weights` and `cache`.
        layout: name of the layout of keys and values; by default the one for the device.
        variant: what the row tries, for its name in the table.
    """
    config, dtype = plan.transformers[shape], jnp.bfloat16
    int8_weights, int8_cache = INT8_WEIGHTS in int8, INT8_CACHE in int8
    tried = "".join(
        f", {each}" for each in (*([variant] if variant else []), *(f"int8 {each}" for each in int8))
    )
    begin = time.perf_counter()
    model = generating.random_decoder(config, ml_dtypes.bfloat16)
    batch = DecodeBatch(
        model,
        generating.empty_prompt(config),
        slots=slots,
        dtype=dtype,
        partition=replace(
            Partition.over(cache_layout=layout), int8_weights=int8_weights, int8_cache=int8_cache
        ),
        blocks=blocks,
    )
    del model
    prompt = generating.random_prompt(config)
    # Not eager: only what the measurement runs is compiled.
    with closing(GeneratorEngine(batch, max_waiting=1_000_000, stall_seconds=3600, eager=False)) as engine:
        generating.wait_until_ready(engine)
        start = time.perf_counter() - begin
        memory = _memory("bytes_in_use")
        times = generating.time_tokens(engine, prompt, slots, plan.repeats)
        operations, size = generating.step_work(
            config, slots, dtype, int8_weights=int8_weights, int8_cache=int8_cache
        )
        yield _timing(
            f"{shape}, {slots} slots, a token{tried}",
            times.scaled(1 / config.image_length),
            slots / times.median,
            dtype=dtype,
            operations=operations,
            size=size,
            memory=memory,
            start=start,
        )
        if slots == 16:
            yield checks.alone_and_together(engine, prompt, slots, f"{shape}, {slots} slots{tried}, bfloat16")


def attention(plan: Plan, shape: str, slots: int, kind: str) -> Iterator[Result]:
    """Times the self-attention of a token alone."""
    config, dtype = plan.transformers[shape], jnp.bfloat16
    for found in time_attention(config, slots, kind, plan.repeats):
        if isinstance(found, Check):
            yield found
            continue
        values = 2 * config.decoder_layers * config.d_model * 2 * slots * config.image_length
        yield _timing(
            f"{shape}, {slots} slots, self-attention of a token, {kind}",
            found,
            slots / (config.image_length * found.median),
            dtype=dtype,
            operations=2 * values,
            size=values * jnp.dtype(dtype).itemsize,
            memory=_memory("bytes_in_use"),
        )


def decode(plan: Plan) -> Iterator[Result]:
    """Times the VQGAN, all pictures in one batch in both types, and in batches of four as the service decodes."""
    codes = generating.random_codes(plan.vqgan, plan.pictures)
    begin = time.perf_counter()
    for dtype, batch_size in ((jnp.bfloat16, plan.pictures), (jnp.float32, plan.pictures), (jnp.bfloat16, 4)):
        model = generating.random_vqgan(plan.vqgan, dtype)
        engine = DecoderEngine(model, batch_size=batch_size)
        times = measure(partial(engine.decode, codes), plan.repeats)
        yield _timing(
            f"VQGAN, {plan.pictures} pictures by {batch_size}, a picture",
            times.scaled(1 / plan.pictures),
            plan.pictures / times.median,
            dtype=dtype,
            operations=_operations(model),
            memory=_memory("bytes_in_use"),
            start=time.perf_counter() - begin - sum(times.seconds),
        )
        begin = time.perf_counter()
        if batch_size == plan.pictures:
            name = f"decoded pictures, {jnp.dtype(dtype).name}"
            yield checks.same_again(partial(engine.decode, codes), name)


def torch_tokens(plan: Plan, shape: str, slots: int) -> Iterator[Result]:
    """Times a plain decoder of the same shape in torch."""
    from benchmarks.accelerator import torch_decoder

    config = plan.transformers[shape]
    for times in torch_decoder.time_tokens(config, slots, plan.repeats):
        yield _timing(
            f"{shape}, {slots} slots, a token",
            times.scaled(1 / config.image_length),
            slots / times.median,
            dtype=jnp.bfloat16,
            peer=True,
        )


def _timing(
    work: str, times: Times, rate: float, *, dtype: DTypeLike, peer: bool = False, **more: float
) -> Timing:
    fields = {"peak": 0 if peer else _memory("peak_bytes_in_use"), **more}
    return Timing(
        work=work,
        peer=peer,
        dtype=jnp.dtype(dtype).name,
        milliseconds=1000 * times.median,
        lowest=1000 * min(times.seconds),
        highest=1000 * max(times.seconds),
        pictures_a_second=rate,
        **fields,  # type: ignore[arg-type]
    )


def _memory(name: str) -> int:
    """Returns a number of the device's allocator; 0 on a CPU, which counts nothing."""
    return int((jax.devices()[0].memory_stats() or {}).get(name, 0))


def _operations(model: vqgan.VQGAN) -> float:
    """Returns the operations for one picture, as XLA counts them before it optimizes."""
    side = int(model.config.tokens**0.5)
    codes = jax.ShapeDtypeStruct((1, side, side), jnp.int32)
    try:
        lowered = vqgan.decode.lower(model.config, model.params, codes, dtype=model.dtype)
        return float((lowered.cost_analysis() or {}).get("flops", 0.0))
    except Exception:  # Not every backend counts.
        return 0.0


MEASURES: dict[str, Callable[..., Iterator[Result]]] = {
    "attention": attention,
    "decode": decode,
    "golden": golden,
    "limits": limits,
    "tokens": tokens,
    "torch_tokens": torch_tokens,
}


def measure_row(name: str, plan: Plan) -> Iterator[Result]:
    """Measures the row of a name."""
    row = ROWS[name]
    return MEASURES[row.measure](plan, **row.options)
