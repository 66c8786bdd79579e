"""A generator on several devices: how arrays are split, meshes that do not fit, and equal tokens."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from jaxtyping import Int

from harness.paths import ROOT
from smalti.engines.encoding import Encoding
from smalti.engines.generator.batch import DecodeBatch
from smalti.engines.generator.engine import GeneratorEngine
from smalti.engines.generator.partition import (
    KERNEL,
    LAYOUTS,
    PREFIX_RULES,
    ROWS_FIRST,
    STATE_RULES,
    WEIGHT_RULES,
    Partition,
    Rules,
)
from smalti.engines.generator.programs import step
from smalti.engines.generator.requests import Candidate, GenerationRequest
from smalti.errors import InvalidInputError
from smalti.models import bart
from smalti.models.bart import DalleBart
from smalti.parameters import FREE, SamplingParameters
from smalti.testing.model import random_parameters, tiny_bart_config

CONFIG = tiny_bart_config(300, decoder_attention_heads=8)
SLOTS = 8


@pytest.mark.parametrize(
    ("rules", "name", "split"),
    [
        (WEIGHT_RULES, "layers/3/self_qkv", (None, "model")),
        (WEIGHT_RULES, "layers/3/glu_in", (None, "model")),
        (WEIGHT_RULES, "layers/3/glu_out", (None, "model")),
        (WEIGHT_RULES, "layers/3/cross_q", ("model",)),
        (WEIGHT_RULES, "layers/3/glu_inner_norm/bias", ("model",)),
        (WEIGHT_RULES, "layers/3/glu_norm/bias", ()),
        (WEIGHT_RULES, "embed_tokens", ()),
        (WEIGHT_RULES, "head", ("model",)),
        (PREFIX_RULES, "layers/0/keys", (None, "model")),
        (PREFIX_RULES, "mask", ()),
        (STATE_RULES, "self_attention/0/1/values", ("data", "model")),
        (STATE_RULES, "cross_mask", ("data",)),
    ],
)
def test_split_depends_on_the_name(rules: Rules, name: str, split: tuple[str | None, ...]) -> None:
    assert Partition.over().sharding(rules, name).spec == PartitionSpec(*split)


def test_keys_are_split_by_heads_wherever_they_lie() -> None:
    partition = Partition.over(cache_layout=ROWS_FIRST)
    assert partition.sharding(STATE_RULES, "cross_attention/0/keys").spec == PartitionSpec(
        "data", None, "model"
    )
    assert partition.sharding(PREFIX_RULES, "layers/0/values").spec == PartitionSpec(None, None, "model")


@pytest.mark.parametrize("text", ["", "8", "1x", "axb", "0x1", "-1x8", "1x2x4"])
def test_invalid_mesh_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match=r"^mesh: ") as refused:
        Partition.parse(text)
    assert "\n" not in str(refused.value)


def test_mesh_with_too_many_devices_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=f"^mesh: 1x1000 needs .* there are {jax.device_count()};"):
        Partition.parse("1x1000")


def draw(mesh: str, **options: Any) -> Int[np.ndarray, "candidates tokens"]:
    """Generates more candidates than there are slots, some of them after given tokens.

    Args:
        mesh: the devices.
        options: fields of `Partition`.
    """
    model = DalleBart(CONFIG, random_parameters(bart.parameter_shapes(CONFIG), 0))
    numbers = np.random.default_rng(1)
    encoding, empty = (
        Encoding(
            numbers.normal(size=(CONFIG.max_text_length, CONFIG.d_model)).astype(np.float32),
            (np.arange(CONFIG.max_text_length) < length).astype(np.int32),
        )
        for length in (9, 2)
    )
    partition = replace(Partition.parse(mesh), **options)
    engine = GeneratorEngine.of(model, empty, slots=SLOTS, partition=partition)
    sampling = SamplingParameters(temperature=0.9, guidance_scale=3, top_k=30, top_p=0.95)
    handles = []
    for given in ((), (5, 6), (FREE, 5, FREE, 6)):
        candidates = tuple(Candidate(7, index, sampling, given=given) for index in range(10))
        handles.append(engine.submit(GenerationRequest(encodings=(encoding,), candidates=candidates)))
    drawn = np.concatenate([handle.result(600.0) for handle in handles])
    engine.close()
    return drawn


def problems() -> list[str]:
    """Returns the errors for meshes that do not fit on eight devices."""
    messages: list[str] = []
    for mesh, slots, changes in (
        ("8x1", 9, {}),
        ("1x8", 8, {"decoder_attention_heads": 4}),
        ("1x8", 8, {"decoder_ffn_dim": 44}),
        ("1x3", 8, {"decoder_attention_heads": 3, "decoder_ffn_dim": 48}),
    ):
        config = tiny_bart_config(300, **{"decoder_attention_heads": 8, **changes})
        try:
            Partition.parse(mesh).check(config, slots)
        except InvalidInputError as error:
            messages.append(str(error))
    return messages


def batch_on(mesh: str, cache_layout: str = "") -> DecodeBatch:
    model = DalleBart(CONFIG, random_parameters(bart.parameter_shapes(CONFIG), 0))
    empty = Encoding(np.zeros((CONFIG.max_text_length, CONFIG.d_model), np.float32), np.ones(64, np.int32))
    partition = replace(Partition.parse(mesh), cache_layout=cache_layout)
    batch = GeneratorEngine.of(model, empty, slots=SLOTS, partition=partition).batch
    assert isinstance(batch, DecodeBatch)
    return batch


def held() -> dict[str, list[int]]:
    """Returns the shapes of the parts of some arrays on one of eight devices."""
    batch = batch_on("2x4")
    weights, state = batch._weights, batch._state
    arrays: dict[str, Any] = {
        "self_qkv": weights.layers[0].self_qkv,
        "glu_out": weights.layers[0].glu_out,
        "keys": state.self_attention[0][0][0].keys,
        "tokens": state.tokens,
    }
    return {name: list(array.addressable_shards[0].data.shape) for name, array in arrays.items()}


def exchanged(cache_layout: str) -> dict[str, int]:
    """Returns how often four devices of a layer exchange what for one token of each slot."""
    batch = batch_on("1x4", cache_layout)
    blocks = len(batch._state.self_attention[0][0])
    arguments = (batch._partition, CONFIG, batch._weights, batch._unconditional, batch._state, 4, blocks)
    text = str(step.lower(*arguments).compile().as_text())
    return Counter(
        f"{found[2]} {found[1]}"
        for found in re.finditer(r"= \(?(\w+\[[\d,]*\]).*? (all-[a-z-]+|collective-permute)\(", text)
    )


@pytest.mark.process
@pytest.mark.parametrize(
    ("mesh", "options"),
    [
        ("2x4", {}),
        pytest.param("1x8", {}, marks=pytest.mark.slow),
        pytest.param("8x1", {}, marks=pytest.mark.slow),
        pytest.param("2x4", {"cache_layout": KERNEL}, marks=pytest.mark.slow),
        pytest.param("1x8", {"cache_layout": KERNEL}, marks=pytest.mark.slow),
        pytest.param("2x4", {"int8_cache": True, "int8_weights": True}, marks=pytest.mark.slow),
        pytest.param("2x4", {"cache_layout": KERNEL, "int8_cache": True}, marks=pytest.mark.slow),
    ],
)
def test_eight_devices_give_the_tokens_of_one(mesh: str, options: dict[str, Any]) -> None:
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PYTHONPATH": str(ROOT),
    }
    program = f"""
import importlib.util, json, jax
from smalti.compilation import use_compilation_cache
use_compilation_cache()
spec = importlib.util.spec_from_file_location("laid", {str(Path(__file__))!r})
laid = importlib.util.module_from_spec(spec)
spec.loader.exec_module(laid)
drawn = laid.draw({mesh!r}, **{options!r}).tolist()
print(json.dumps([jax.device_count(), drawn, laid.problems(), laid.held(), *map(laid.exchanged, laid.LAYOUTS)]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    devices, drawn, said, shapes, *exchanges = json.loads(done.stdout)
    assert devices == 8
    alone = draw("1x1", **{name: each for name, each in options.items() if name != "cache_layout"})
    assert len({tuple(row) for row in alone.tolist()}) == len(alone)
    np.testing.assert_array_equal(drawn, alone)
    # A quarter of each layer, and half of the slots.
    heads, head_size = CONFIG.decoder_attention_heads, CONFIG.d_model // CONFIG.decoder_attention_heads
    assert shapes["self_qkv"] == [3, CONFIG.d_model // 4, CONFIG.d_model]
    assert shapes["glu_out"] == [CONFIG.d_model, CONFIG.decoder_ffn_dim // 4]
    assert shapes["keys"] == [SLOTS, heads // 4, 4, head_size]
    assert shapes["tokens"] == [SLOTS // 2, CONFIG.image_length]
    assert said == [
        "mesh: 8x1 does not fit: slots is 9, which 8 devices cannot share evenly",
        "mesh: 1x8 does not fit: decoder_attention_heads is 4, which 8 devices cannot share evenly",
        "mesh: 1x8 does not fit: decoder_ffn_dim is 44, which 8 devices cannot share evenly",
        "mesh: 1x3 does not fit: decoder_start_token_id is 64, which 3 devices cannot share evenly",
    ]
    # Each layer: a sum over the devices after each of its three blocks, and those of the norm between the split
    # products of the last. Each token: the logits once, so that each device samples for some slots; the tokens;
    # and whether any slot has a limit (top-k or top-p).
    layers, rows, vocab = CONFIG.decoder_layers, 2 * SLOTS, CONFIG.decoder_start_token_id
    expected = {
        f"all-reduce f32[{CONFIG.d_model},{rows}]": 3 * layers,
        f"all-reduce f32[{rows}]": layers,
        f"all-to-all f32[{vocab // 4},1,2,2]": 1,
        f"all-gather s32[{SLOTS}]": 1,
        "all-reduce pred[]": 1,
    }
    assert exchanges == [expected] * len(LAYOUTS)
