"""How much memory of each device a generator needs, from the shapes of its weights and its state."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import jax
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from smalti.engines.generator.partition import DATA, HEADS_FIRST, MODEL, ROWS_FIRST, Partition
from smalti.engines.generator.state import abstract_state
from smalti.engines.generator.weights import abstract_weights
from smalti.models.bart import DalleBartConfig

WORKING_BYTES: Final = 128 * 2**20
"""What the programs and their temporary arrays may take. The compiler for v5e says 34 MiB for a step of mini with
16 slots, 37 with 64, and 57 for mega with 16; the rest is room."""
JAX_SHARE: Final = 0.75
"""The part of a GPU's memory that JAX takes, unless `XLA_PYTHON_CLIENT_MEM_FRACTION` says otherwise."""
DEVICE_GIB: Final[Mapping[str, float]] = {
    **{"v5e": 16.0, "v6e": 32.0, "v5p": 95.0},
    **{"L4": 24.0 * JAX_SHARE, "H100": 80.0 * JAX_SHARE},
}
"""GiB that a generator may use of a device, by its kind."""


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes of a generator, by how the devices of a mesh share them."""

    weights: int
    """Weights that every device has."""
    split_weights: int
    """Weights that the devices of a layer share."""
    slot: int
    """State of a slot, on each device of its layer."""
    split_slot: int
    """State of a slot that the devices of a layer share: keys and values."""

    @classmethod
    def of(cls, config: DalleBartConfig, dtype: DTypeLike, *, on_tpu: bool) -> Self:
        """Returns that of a model, computed with `dtype`; nothing is allocated."""
        device = np.array(jax.devices()[:1]).reshape(1, 1)
        partition = Partition(Mesh(device, (DATA, MODEL)), ROWS_FIRST if on_tpu else HEADS_FIRST)
        weights, split_weights = _bytes(abstract_weights(config, dtype, partition))
        slot, split_slot = _bytes(abstract_state(partition, config, 1, dtype, 1, 1))
        return cls(weights=weights, split_weights=split_weights, slot=slot, split_slot=split_slot)

    def per_device(self, slots: int, data: int = 1, model: int = 1) -> int:
        """Returns the bytes of each device of a mesh of `data` times `model` of them, with those of the programs."""
        slots_each = -(-slots // data)
        split = self.split_weights + slots_each * self.split_slot
        return WORKING_BYTES + self.weights + slots_each * self.slot + -(-split // model)


def _bytes(tree: Any) -> tuple[int, int]:
    """Returns the bytes of the arrays of which each device of a layer has all, and of those of which it has a part."""
    found = [0, 0]
    for leaf in jax.tree.leaves(tree):
        found[MODEL in leaf.sharding.spec] += leaf.size * leaf.dtype.itemsize
    return found[0], found[1]
