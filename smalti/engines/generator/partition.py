"""Partitioning a model over several devices: which axis of an array is split over which axis of the mesh.

A mesh has two axes. `data` splits the slots: each group of devices generates its own candidates. `model` splits every
layer, its heads and the width of its feed-forward block (Shoeybi et al. 2019, https://arxiv.org/abs/1909.08053,
section 3), so that a model larger than one device fits. The first rule that matches an array's name gives its split;
the compiler derives which partial sums the devices exchange.
"""

import re
from dataclasses import dataclass
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from smalti.errors import InvalidInputError
from smalti.models.bart import DalleBartConfig

Rules = tuple[tuple[str, PartitionSpec], ...]
"""Regular expressions for the end of a name, each with the split of the arrays that it matches."""
Tree = TypeVar("Tree")

DATA, MODEL = "data", "model"

WEIGHT_RULES: Rules = (
    # The first product of a block is split by its outputs, the last by its inputs: one sum over devices per block.
    (r"(self_qkv|cross_kv|glu_in)", PartitionSpec(None, MODEL)),
    (r"(self_out|cross_out|glu_out)", PartitionSpec(None, MODEL)),
    (r"(cross_q|head)", PartitionSpec(MODEL)),
    (r"glu_inner_norm/(bias|scale)", PartitionSpec(MODEL)),
    (r"", PartitionSpec()),
)
PREFIX_RULES: Rules = (
    (r"(keys|values)", PartitionSpec(None, MODEL)),
    (r"", PartitionSpec()),
)
STATE_RULES: Rules = (
    (r"(keys|values)", PartitionSpec(DATA, MODEL)),
    (r"", PartitionSpec(DATA)),
)


@dataclass(frozen=True)
class Partition:
    """A mesh of devices, and how arrays are split over it."""

    mesh: Mesh

    @classmethod
    def over(cls, data: int = 1, model: int = 1) -> "Partition":
        """Makes a mesh of the first `data * model` devices.

        Raises:
            InvalidInputError: there are fewer devices.
        """
        devices = jax.devices()
        if data < 1 or model < 1 or data * model > len(devices):
            raise InvalidInputError(
                "mesh",
                f"{data}x{model} needs {data * model} devices, but there are {len(devices)}; use a smaller mesh",
            )
        return cls(Mesh(np.array(devices[: data * model]).reshape(data, model), (DATA, MODEL)))

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

    def check(self, config: DalleBartConfig, slots: int) -> None:
        """Checks that every size that is split is divisible.

        Raises:
            InvalidInputError: a size is not divisible; names it.
        """
        model, data = self.mesh.shape[MODEL], self.mesh.shape[DATA]
        divided = {
            "slots": (slots, data),
            "decoder_attention_heads": (config.decoder_attention_heads, model),
            "decoder_ffn_dim": (config.decoder_ffn_dim, model),
            "decoder_start_token_id": (config.decoder_start_token_id, model),
        }
        for name, (size, devices) in divided.items():
            if size % devices:
                raise InvalidInputError(
                    "mesh",
                    f"{data}x{model} does not fit: {name} is {size}, which {devices} devices cannot share evenly",
                )

    def sharding(self, rules: Rules, name: str) -> NamedSharding:
        """Returns how the array with this name is split."""
        spec = next(
            spec for pattern, spec in rules if re.search(rf"(^|/){pattern}$" if pattern else "", name)
        )
        return NamedSharding(self.mesh, spec)

    def place(self, array: np.ndarray, rules: Rules, name: str) -> Array:
        """Copies an array from the host to the devices, to each only its part."""
        placed: Array = jax.device_put(array, self.sharding(rules, name))
        return placed

    def constrain(self, tree: Tree, rules: Rules) -> Tree:
        """Tells the compiler, inside a program, how the arrays of a tree are split."""
        named, structure = jax.tree_util.tree_flatten_with_path(tree)
        leaves = [
            jax.lax.with_sharding_constraint(
                leaf, self.sharding(rules, jax.tree_util.keystr(path, simple=True, separator="/"))
            )
            for path, leaf in named
        ]
        constrained: Tree = jax.tree_util.tree_unflatten(structure, leaves)
        return constrained

    def gather(self, array: Array) -> Array:
        """Tells the compiler, inside a program, that every device holds the whole array."""
        return jax.lax.with_sharding_constraint(array, NamedSharding(self.mesh, PartitionSpec()))

    def by_slot(self, array: Array) -> Array:
        """Tells the compiler, inside a program, that only the first axis, the slots, is split."""
        return jax.lax.with_sharding_constraint(array, NamedSharding(self.mesh, PartitionSpec(DATA)))
