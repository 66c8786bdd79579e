"""Compiles one program for chips that are not there. Runs in a process of its own that has libtpu."""

import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.tpu.estimate import read
from benchmarks.tpu.kernels import counted, schedules
from benchmarks.tpu.rows import Row
from smalti.compilation import Memory, find_topology
from smalti.engines.generator import programs
from smalti.engines.generator.attention import Plan
from smalti.engines.generator.partition import DATA, MODEL, PREFIX_RULES, Partition
from smalti.engines.generator.state import DecodeState, Prefix, abstract_state
from smalti.engines.generator.weights import DecoderWeights, abstract_weights
from smalti.models import bart, vqgan
from smalti.models.bart import DalleBartConfig
from smalti.models.layers import unflatten
from smalti.models.vqgan_config import VQGANConfig
from smalti.registry.published import MEGA, MINI, VQGAN_F16_16384

TYPE = jnp.bfloat16
EMPTY_PROMPT = 2
"""Tokens of the empty prompt."""
PICTURES = 4


def compile_row(row: Row) -> dict[str, Any]:
    """Compiles the program of a row; returns what the compiler says of it."""
    partition = _partition(row)
    options: dict[str, Any] = {}
    if row.program == "decode":
        options = vqgan.decode.compiler_options("tpu")
        lowered, floor, state = _decode(partition)
    elif row.program == "encode":
        lowered, floor, state = _encode(partition, _config(row))
    else:
        lowered, floor, state = _Generator(partition, _config(row), row.slots).lower(row.program)
    began = time.monotonic()
    compiled = lowered.compile(compiler_options=options or None)
    seconds = time.monotonic() - began
    analysis: Any = compiled.memory_analysis()
    memory = Memory.of(compiled)
    assert memory is not None
    return {
        **asdict(read(str(compiled.as_text()))),
        "compile_seconds": seconds,
        "floor_bytes": floor,
        "state_bytes": state,
        "aliased_bytes": analysis.alias_size_in_bytes,
        "argument_bytes": memory.arguments,
        "temporary_bytes": memory.temporary,
        "memory_bytes": memory.arguments + memory.temporary + memory.results,
    }


def compile_kernels(row: Row, folder: Path) -> dict[str, Any]:
    """Compiles the attention of a layer alone; returns what its kernels are counted as.

    Args:
        row: a row with a step.
        folder: where the compiler writes its schedules, in the environment of `dumping`.
    """
    partition = _partition(row)
    generator = _Generator(partition, _config(row), row.slots)
    compiled = generator.attention().compile()
    data, model = partition.mesh.shape[DATA], partition.mesh.shape[MODEL]
    self_attention, slots = generator.state.self_attention[0][0][0], row.slots // data
    rows, length, width = self_attention.keys.shape
    plan = Plan.of((rows, length, width // model), self_attention.keys.dtype, row.slots, 1, TYPE)
    scheduled = schedules(folder, ("extend", "attend_to_prompts"))
    kernels = read(str(compiled.as_text())).kernels
    blocks = {"extend": length // plan.block, "attend_to_prompts": 1}
    drawn = {"extend": _bytes(self_attention), "attend_to_prompts": 0}
    return {
        name: counted(scheduled[name], slots, blocks[name], size, drawn[name])
        for name, (_, size) in kernels.items()
    }


def _config(row: Row) -> DalleBartConfig:
    return DalleBartConfig.from_fields({"mini": MINI, "mega": MEGA}[row.model])


def _partition(row: Row) -> Partition:
    data, model = map(int, row.mesh.split("x"))
    devices = find_topology(row.topology)[: data * model]
    mesh = Mesh(np.array(devices).reshape(data, model), (DATA, MODEL))
    return Partition(mesh, int8_cache=row.int8 == "cache", int8_weights=row.int8 == "weights")


def _bytes(tree: Any) -> int:
    """Returns the bytes of a tree on one chip, unpadded."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _array(partition: Partition, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(partition.mesh, PartitionSpec()))


class _Generator:
    """Stands for the arrays that the programs of the generator take."""

    def __init__(self, partition: Partition, config: DalleBartConfig, slots: int) -> None:
        self.partition, self.config, self.slots = partition, config, slots
        self.weights: DecoderWeights = abstract_weights(config, TYPE, partition)
        self.state: DecodeState = abstract_state(partition, config, slots, TYPE, 1, 1)

    def array(self, *shape: int, dtype: Any = jnp.int32) -> Any:
        return _array(self.partition, shape, dtype)

    def prompt(self, length: int) -> tuple[Any, Any]:
        return self.array(length, self.config.d_model, dtype=jnp.float32), self.array(length)

    def prefix(self, length: int) -> Prefix:
        arguments = (self.partition, self.config, self.weights, *self.prompt(length))
        return self.partition.abstract(programs.prefill.lower(*arguments).out_info, PREFIX_RULES)

    def attention(self) -> jax.stages.Lowered:
        """Returns the lowered attention of one layer of a step."""
        partition, state = self.partition, self.state
        layout, empty = partition.layout_for(self.config), self.prefix(EMPTY_PROMPT)
        vectors = jax.ShapeDtypeStruct(
            (2 * self.slots, self.config.d_model), TYPE,
            sharding=NamedSharding(partition.mesh, PartitionSpec(DATA, MODEL)),
        )  # fmt: skip

        def attend(queries: Any, past: Any, position: Any, prompts: Any, mask: Any, empty: Any) -> Any:
            return (
                layout.extend(queries, queries, queries, (past,), position),
                layout.attend_to_prompts(queries, prompts, mask, empty.layers[0], empty.mask),
            )

        arguments = (vectors, state.self_attention[0][0][0], state.position, state.cross_attention[0])
        return jax.jit(attend, donate_argnums=1).lower(*arguments, state.cross_mask, empty)

    def lower(self, program: str) -> tuple[jax.stages.Lowered, int, int]:
        """Returns the lowered program, the bytes that it must read, and those of the state, on one chip."""
        partition, config, weights, state = self.partition, self.config, self.weights, self.state
        held, slots = _bytes(state), self.array(self.slots)
        read_once = _bytes((weights.layers, weights.head))
        tokens = self.array(config.image_length)
        text, empty = config.max_text_length, EMPTY_PROMPT
        if program == "step":
            steps = math.isqrt(config.image_length)
            lowered = programs.step.lower(partition, config, weights, self.prefix(empty), state, steps, 1)
            return lowered, read_once + _bytes((state.self_attention, state.cross_attention)), held
        if program == "prefill":
            kernels = _bytes([layer.cross_kv for layer in weights.layers])
            return programs.prefill.lower(partition, config, weights, *self.prompt(text)), kernels, 0
        if program == "insert":
            sampling = jax.tree.map(lambda leaf: self.array(*leaf.shape, dtype=leaf.dtype), state.sampling)
            given = self.array(self.slots, config.image_length)
            lowered = programs.insert.lower(partition, state, self.prefix(text), slots, sampling, given)
            # What one slot gets; the program's loop runs once for each.
            return lowered, _bytes(state.cross_attention) // self.slots, held
        if program == "release":
            return programs.release.lower(partition, state, slots), 0, held
        primed = programs.prime.lower(
            partition, config, weights, self.prefix(text), self.prefix(empty), tokens
        )
        if program == "prime":
            return primed, read_once, 0
        new = partition.abstract(primed.out_info, PREFIX_RULES)
        lowered = programs.insert_primed.lower(partition, state, new, tokens, self.array(), slots)
        return lowered, _bytes(state.self_attention) // self.slots, held


def _encode(partition: Partition, config: DalleBartConfig) -> tuple[jax.stages.Lowered, int, int]:
    """The text encoder, one prompt."""
    shapes = {
        name: _array(partition, shape, TYPE)
        for name, shape in bart.parameter_shapes(config).items()
        if name.startswith("model/encoder/")
    }
    ids = _array(partition, (1, config.max_text_length), jnp.int32)
    lowered = jax.jit(bart.encode, static_argnums=0, static_argnames="dtype").lower(
        config, unflatten(shapes), ids, ids, dtype=TYPE
    )
    return lowered, _bytes([each for name, each in shapes.items() if "embed_tokens" not in name]), 0


def _decode(partition: Partition) -> tuple[jax.stages.Lowered, int, int]:
    """The VQGAN's decoder."""
    config = VQGANConfig.from_fields(VQGAN_F16_16384)
    params = unflatten(
        # As in the files; only what it computes is shorter.
        {
            name: _array(partition, shape, jnp.float32)
            for name, shape in vqgan.parameter_shapes(config).items()
        }
    )
    side = math.isqrt(config.tokens)
    codes = _array(partition, (PICTURES, side, side), jnp.int32)
    return vqgan.decode.lower(config, params, codes, dtype=TYPE), 0, 0
