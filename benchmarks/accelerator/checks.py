"""Whether the device computes what the originals compute, and the same again."""

from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from benchmarks.accelerator.results import Check
from harness.paths import GOLDEN
from smalti.engines.encoding import Encoding
from smalti.engines.generator.engine import GeneratorEngine
from smalti.engines.generator.requests import Candidate
from smalti.models.bart import DalleBart
from smalti.models.vqgan import VQGAN
from smalti.parameters import SamplingParameters

TOLERANCE = 1e-4
"""Of values in float32, as in the tests."""
GREEDY = SamplingParameters(temperature=0, guidance_scale=10)
VARIED = SamplingParameters(temperature=0.9, guidance_scale=3, top_k=30, top_p=0.95)
SEED = 7


def golden() -> Iterator[Check]:
    """Compares with the golden values of the repository, computed once with the original implementations."""
    folder = GOLDEN / "dallebart_scan"
    model, expected = DalleBart.load(folder), np.load(folder / "expected.npz")
    for dtype in (jnp.float32, jnp.bfloat16):
        cast = DalleBart(model.config, model.params, dtype)
        encoding = cast.encode(expected["input_ids"], expected["attention_mask"])
        logits = cast.logits(encoding, expected["attention_mask"], expected["decoder_input_ids"])
        yield _deviation("encoding", dtype, encoding, expected["encoder_hidden"])
        yield _deviation("logits", dtype, logits, expected["logits"])
        yield from _tokens(cast, expected, dtype)
    folder = GOLDEN / "vqgan_tiny"
    vqgan, expected = VQGAN.load(folder), np.load(folder / "expected.npz")
    codes = np.asarray(vqgan.encode(expected["pixels"]))
    yield _equal("codes of pictures, float32", codes, expected["indices"])
    for dtype in (jnp.float32, jnp.bfloat16):
        decoded = VQGAN(vqgan.config, vqgan.params, dtype).decode(expected["codes"])
        yield _deviation("decoded pictures", dtype, decoded, expected["decoded"])


def _tokens(model: DalleBart, expected: Any, dtype: DTypeLike) -> Iterator[Check]:
    """Compares greedy tokens with the original's, and varied tokens alone with those in a full batch."""
    unconditional = Encoding(expected["uncond_encoder_hidden"][0], expected["uncond_attention_mask"][0])
    engine = GeneratorEngine.of(model, unconditional, slots=4, dtype=dtype)
    try:
        prompts = [
            Encoding(expected["encoder_hidden"][row], expected["attention_mask"][row]) for row in range(3)
        ]
        drawn = engine.generate(prompts, [Candidate(0, 0, GREEDY, row) for row in range(3)])
        name = jnp.dtype(dtype).name
        required = dtype == jnp.float32
        yield _equal(f"greedy tokens, {name}", drawn, expected["greedy_scale10"][:3], required=required)
        yield alone_and_together(engine, prompts[0], 11, f"golden model, {name}")
    finally:
        engine.close()


def alone_and_together(engine: GeneratorEngine, prompt: Encoding, count: int, model: str) -> Check:
    """Checks that a candidate gets the same tokens alone, in a full batch, and again."""
    together = engine.generate(prompt, [Candidate(SEED, index, VARIED) for index in range(count)])
    picked = sorted({0, count // 3, count - 1})
    alone = [engine.generate(prompt, [Candidate(SEED, index, VARIED)])[0] for index in picked]
    again = engine.generate(prompt, [Candidate(SEED, index, VARIED) for index in range(count)])
    distinct = len({tuple(row) for row in together.tolist()})
    both = _equal("", np.stack([*alone, *again]), np.stack([*together[picked], *together]))
    return Check(
        check=f"tokens alone, in a full batch and again, {model}",
        passed=both.passed and distinct > count // 2,
        detail=f"{both.detail}; {distinct} of {count} candidates differ from each other",
    )


def _equal(name: str, found: np.ndarray, wanted: np.ndarray, *, required: bool = True) -> Check:
    same = int((np.asarray(found) == wanted).sum())
    return Check(
        check=name,
        passed=same == wanted.size if required else None,
        detail=f"{same} of {wanted.size} equal",
    )


def _deviation(name: str, dtype: DTypeLike, found: Any, wanted: np.ndarray) -> Check:
    """Compares values; only those in float32 have a tolerance."""
    largest = float(np.abs(np.asarray(found, np.float32) - wanted).max())
    passed = largest <= TOLERANCE if dtype == jnp.float32 else None
    scale = float(np.abs(wanted).max())
    return Check(
        check=f"{name}, {jnp.dtype(dtype).name}",
        passed=passed,
        detail=f"largest difference {largest:.2g} of values up to {scale:.2g}",
    )


def same_again(work: Callable[[], np.ndarray], name: str) -> Check:
    """Checks that the same work gives the same values twice."""
    return _equal(f"{name}, twice", work(), work())
