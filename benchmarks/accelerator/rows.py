"""The measurements, each of which runs in a process of its own."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
from jax.typing import DTypeLike

from benchmarks import generating
from benchmarks.accelerator import checks
from benchmarks.accelerator.plan import Plan
from benchmarks.accelerator.results import Check, Limit, Timing
from benchmarks.measuring import Times, measure, measure_limits
from smalti.engines.decoder import DecoderEngine
from smalti.engines.generator.batch import DecodeBatch
from smalti.engines.generator.engine import GeneratorEngine
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


def tokens(plan: Plan, shape: str, slots: int) -> Iterator[Result]:
    """Times the tokens of a full batch, with random parameters; the smallest batch checks determinism too."""
    config, dtype = plan.transformers[shape], jnp.bfloat16
    begin = time.perf_counter()
    model = generating.random_decoder(config, ml_dtypes.bfloat16)
    batch = DecodeBatch(model, generating.empty_prompt(config), slots=slots, dtype=dtype)
    del model
    prompt = generating.random_prompt(config)
    # Not eager: only what the measurement runs is compiled.
    with closing(GeneratorEngine(batch, max_waiting=1_000_000, stall_seconds=3600, eager=False)) as engine:
        generating.wait_until_ready(engine)
        start = time.perf_counter() - begin
        memory = _memory("bytes_in_use")
        times = generating.time_tokens(engine, prompt, slots, plan.repeats)
        operations, size = generating.step_work(config, slots, dtype)
        yield _timing(
            f"{shape}, {slots} slots, a token",
            times.scaled(1 / config.image_length),
            slots / times.median,
            dtype=dtype,
            operations=operations,
            size=size,
            memory=memory,
            start=start,
        )
        if slots == 16:
            yield checks.alone_and_together(engine, prompt, slots, f"{shape}, {slots} slots, bfloat16")


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


# The cheapest and most valuable first.
ROWS: dict[str, Callable[[Plan], Iterator[Result]]] = {
    "limits": limits,
    "golden": golden,
    "mini-16": partial(tokens, shape="mini", slots=16),
    "decode": decode,
    "torch-mini-16": partial(torch_tokens, shape="mini", slots=16),
    "mega-16": partial(tokens, shape="mega", slots=16),
    "torch-mega-16": partial(torch_tokens, shape="mega", slots=16),
    "mini-64": partial(tokens, shape="mini", slots=64),
    "torch-mini-64": partial(torch_tokens, shape="mini", slots=64),
    "mega-64": partial(tokens, shape="mega", slots=64),
    "torch-mega-64": partial(torch_tokens, shape="mega", slots=64),
}
