"""Partitioning a model over several devices: which axis of an array is split over which axis of the mesh.

A mesh has two axes. `data` splits the slots: each group of devices generates its own candidates. `model` splits every
layer, its heads and the width of its feed-forward block (Shoeybi et al. 2019, https://arxiv.org/abs/1909.08053,
section 3), so that a model larger than one device fits. The first rule that matches an array's name gives its split;
the compiler derives which partial sums the devices exchange.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from smalti.compilation import devices, put
from smalti.engines.generator.attention import CacheLayout, HeadsFirst, RowsFirst
from smalti.errors import InvalidInputError
from smalti.models.bart import DalleBartConfig
from smalti.settings import settings

Rules = tuple[tuple[str, PartitionSpec], ...]
"""Regular expressions for the end of a name, each with the split of the arrays that it matches."""
Tree = TypeVar("Tree")

DATA, MODEL = "data", "model"

CACHED = re.compile(r"(^|/)(keys|values)$")
"""Names of keys and values. Their rules are for rows and heads, whose axis depends on the layout."""

WEIGHT_RULES: Rules = (
    # The first product of a block is split by its outputs, the last by its inputs: one sum over devices per block. The
    # scales of int8 belong to the outputs.
    (r"(self_qkv|cross_kv|glu_in)(/kernel|/scale)?", PartitionSpec(None, MODEL)),
    (r"(self_out|cross_out|glu_out)(/kernel)?", PartitionSpec(None, MODEL)),
    (r"(cross_q|head)(/kernel|/scale)?", PartitionSpec(MODEL)),
    (r"glu_inner_norm/(bias|scale)", PartitionSpec(MODEL)),
    (r"", PartitionSpec()),
)
PREFIX_RULES: Rules = (
    (r"(keys|values|key_scales|value_scales)", PartitionSpec(None, MODEL)),
    (r"", PartitionSpec()),
)
STATE_RULES: Rules = (
    (r"(keys|values|key_scales|value_scales)", PartitionSpec(DATA, MODEL)),
    (r"", PartitionSpec(DATA)),
)


INT8_CACHE, INT8_WEIGHTS = "cache", "weights"
HEADS_FIRST, ROWS_FIRST, KERNEL = "heads_first", "rows_first", "kernel"
LAYOUTS: Mapping[str, type[HeadsFirst] | type[RowsFirst]] = {
    HEADS_FIRST: HeadsFirst,
    ROWS_FIRST: RowsFirst,
    # Rows first, too, with the kernel for TPUs; other devices interpret it, for tests.
    KERNEL: RowsFirst,
}


@dataclass(frozen=True)
class Partition:
    """A mesh of devices, how arrays are split over it, and how they lie on it."""

    mesh: Mesh
    cache_layout: str = ""
    """Name of the layout of keys and values, one of `LAYOUTS`; by default the one for the devices of the mesh."""
    int8_cache: bool = False
    """Whether keys and values are kept as int8."""
    int8_weights: bool = False
    """Whether the kernels are kept as int8."""

    def __post_init__(self) -> None:
        if not self.cache_layout:
            on_tpu = self.mesh.devices.flat[0].platform == "tpu"
            object.__setattr__(self, "cache_layout", KERNEL if on_tpu else HEADS_FIRST)

    @classmethod
    def over(cls, data: int = 1, model: int = 1, cache_layout: str = "") -> "Partition":
        """Makes a mesh of the first `data * model` devices.

        Raises:
            InvalidInputError: there are fewer devices.
        """
        found = devices()
        if data < 1 or model < 1 or data * model > len(found):
            raise InvalidInputError(
                "mesh",
                f"{data}x{model} needs {data * model} devices, but there are {len(found)}; use a smaller mesh",
            )
        chosen = found[: data * model]
        idle = {device.process_index for device in found} - {device.process_index for device in chosen}
        if idle and jax.process_count() > 1:
            raise InvalidInputError(
                "mesh",
                f"{data}x{model} has no device of process {min(idle)}; the processes of a group have {len(found)} "
                "devices together, and a mesh of that many uses them",
            )
        return cls(Mesh(np.array(chosen).reshape(data, model), (DATA, MODEL)), cache_layout)

    @classmethod
    def parse(cls, text: str) -> "Partition":
        """Parses `DATAxMODEL`, such as `2x4`; raises `InvalidInputError`, as `over` does."""
        sizes = re.fullmatch(r"(\d{1,6})x(\d{1,6})", text.strip())
        if sizes is None:
            raise InvalidInputError(
                "mesh",
                f"{text!r} must have the form DATAxMODEL: devices that share the slots, and devices per layer; try 1x8",
            )
        return cls.over(int(sizes[1]), int(sizes[2]))

    @classmethod
    def of_settings(cls, mesh: str | None = None) -> "Partition":
        """Makes the partition of the settings, with another mesh if one is given; raises `InvalidInputError`."""
        chosen = settings()
        shortened = {each.strip() for each in chosen.generator_int8.split(",") if each.strip()}
        if not shortened <= {INT8_CACHE, INT8_WEIGHTS}:
            raise InvalidInputError(
                "SMALTI_GENERATOR_INT8",
                f"{chosen.generator_int8!r} must be {INT8_CACHE}, {INT8_WEIGHTS}, or both with a comma",
            )
        return replace(
            cls.parse(mesh or chosen.generator_mesh),
            int8_cache=INT8_CACHE in shortened,
            int8_weights=INT8_WEIGHTS in shortened,
        )

    def check(self, config: DalleBartConfig, slots: int) -> None:
        """Checks that every size that is split is divisible.

        Raises:
            InvalidInputError: a size is not divisible; names it.
        """
        model, data = self.mesh.shape[MODEL], self.mesh.shape[DATA]
        divided = {
            "slots": (slots, data),
            "decoder_attention_heads": (config.decoder_attention_heads, model),
            "decoder_ffn_dim": (self.padded_width(config.decoder_ffn_dim), model),
            "decoder_start_token_id": (config.decoder_start_token_id, model),
        }
        for name, (size, sharers) in divided.items():
            if size % sharers:
                raise InvalidInputError(
                    "mesh",
                    f"{data}x{model} does not fit: {name} is {size}, which {sharers} devices cannot share evenly",
                )

    def layout_for(self, config: DalleBartConfig) -> CacheLayout:
        """Returns the layout of a model's keys and values."""
        heads = config.decoder_attention_heads
        if self.cached is RowsFirst:
            mesh = self.mesh if self.cache_layout == KERNEL else None
            return RowsFirst(heads, self.mesh.shape[MODEL], self.int8_cache, mesh)
        return HeadsFirst(heads, self.int8_cache)

    @property
    def cached(self) -> type[HeadsFirst] | type[RowsFirst]:
        """The layout of any model's keys and values."""
        return LAYOUTS[self.cache_layout]

    def padded_width(self, width: int) -> int:
        """Returns the width of the feed-forward block with the padding that the layout asks for."""
        return -(-width // self.cached.width_multiple) * self.cached.width_multiple

    def sharding(self, rules: Rules, name: str) -> NamedSharding:
        """Returns how the array with this name is split."""
        spec = next(
            spec for pattern, spec in rules if re.search(rf"(^|/){pattern}$" if pattern else "", name)
        )
        if CACHED.search(name):
            rows, heads = spec
            spec = PartitionSpec(rows, *(None,) * (self.cached.heads_axis - 1), heads)
        return NamedSharding(self.mesh, spec)

    def place(self, array: np.ndarray, rules: Rules, name: str) -> Array:
        """Copies an array from the host to the devices, to each only its part."""
        placed: Array = put(array, self.sharding(rules, name))
        return placed

    def put(self, array: np.ndarray) -> Array:
        """Copies an array from the host to the devices, as an argument of a program."""
        # Without a place, the program decides where it goes; devices of other processes must be named.
        place = NamedSharding(self.mesh, PartitionSpec()) if self.spans_processes else None
        placed: Array = put(array, place)
        return placed

    @property
    def spans_processes(self) -> bool:
        """Whether devices of other processes belong to the mesh, all of which make the same calls."""
        own = jax.process_index()
        return jax.process_count() > 1 and any(
            device.process_index != own for device in self.mesh.devices.flat
        )

    def constrain(self, tree: Tree, rules: Rules) -> Tree:
        """Tells the compiler, inside a program, how the arrays of a tree are split."""
        return self._map(jax.lax.with_sharding_constraint, tree, rules)

    def abstract(self, tree: Tree, rules: Rules) -> Tree:
        """Returns what stands for a tree of arrays on the devices, to compile for them: `jax.ShapeDtypeStruct`."""
        return self._map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            tree,
            rules,
        )

    def _map(self, function: Callable[[Any, NamedSharding], Any], tree: Tree, rules: Rules) -> Tree:
        """Applies a function to the leaves of a tree and their shardings."""
        leaves = map(function, jax.tree.leaves(tree), self._shardings(tree, rules))
        mapped: Tree = jax.tree.unflatten(jax.tree.structure(tree), leaves)
        return mapped

    def _shardings(self, tree: Any, rules: Rules) -> list[NamedSharding]:
        """Returns how the leaves of a tree are split."""
        paths = (path for path, _ in jax.tree.leaves_with_path(tree))
        return [
            self.sharding(rules, jax.tree_util.keystr(path, simple=True, separator="/")) for path in paths
        ]

    def put_rows(self, kept: Tree, new: Tree, starts: Int[Array, " copies"]) -> Tree:
        """Returns arrays of a state with the rows of `new` copied to several places, inside a program.

        Args:
            kept: arrays whose first axis are rows.
            new: arrays with a few rows, split like a prefix.
            starts: rows at which the first one of `new` is put; those past the end are dropped.
        """

        def scatter(kept: Array, new: Array) -> Array:
            rows = (starts[:, None] + jnp.arange(len(new))).reshape(-1)
            return kept.at[rows].set(jnp.tile(new, (len(starts), *(1,) * (new.ndim - 1))), mode="drop")

        if self.cache_layout != KERNEL:
            scattered: Tree = jax.tree.map(scatter, kept, new)
            return scattered

        # A TPU's compiler copies all of an array to scatter into it. Each device writes what falls among its own rows.
        def write(kept: list[Array], new: list[Array], starts: Array) -> list[Array]:
            starts = starts - jax.lax.axis_index(DATA) * len(kept[0])
            own = (starts >= 0) & (starts < len(kept[0]))
            starts = starts[jnp.argsort(~own)]

            def put_one(index: Array, kept: list[Array]) -> list[Array]:
                place = partial(jax.lax.dynamic_update_slice_in_dim, start_index=starts[index], axis=0)
                return [place(each, update) for each, update in zip(kept, new, strict=True)]

            written: list[Array] = jax.lax.fori_loop(0, own.sum(), put_one, kept)
            return written

        split = [sharding.spec for sharding in self._shardings(kept, STATE_RULES)]
        whole = [sharding.spec for sharding in self._shardings(new, PREFIX_RULES)]
        run = jax.shard_map(
            write, mesh=self.mesh, in_specs=(split, whole, PartitionSpec()), out_specs=split, check_vma=False
        )
        written: Tree = jax.tree.unflatten(
            jax.tree.structure(kept), run(jax.tree.leaves(kept), jax.tree.leaves(new), starts)
        )
        return written

    def gather(self, array: Array) -> Array:
        """Tells the compiler, inside a program, that every device holds the whole array."""
        return jax.lax.with_sharding_constraint(array, NamedSharding(self.mesh, PartitionSpec()))

    def by_column(self, array: Array) -> Array:
        """Tells the compiler, inside a program, that hidden states `[d_model, rows]` are split by their slots alone.

        Left to itself, it would split them over the devices of a layer as well, like the logits of `spread_slots`, and
        put them together again before every product.
        """
        return jax.lax.with_sharding_constraint(array, NamedSharding(self.mesh, PartitionSpec(None, DATA)))

    def by_slot(self, array: Array) -> Array:
        """Tells the compiler, inside a program, that only the first axis, the slots, is split, as in the state."""
        return jax.lax.with_sharding_constraint(array, NamedSharding(self.mesh, PartitionSpec(DATA)))

    def spread_slots(self, array: Array) -> Array:
        """Tells the compiler, inside a program, that the slots are split over all devices, those of a layer as well.

        Where there are too few slots for that, the devices of a layer compute the same.
        """
        if len(array) % self.mesh.size:
            return self.by_slot(array)
        return jax.lax.with_sharding_constraint(array, NamedSharding(self.mesh, PartitionSpec((DATA, MODEL))))
