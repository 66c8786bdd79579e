"""How much memory of each device a generator needs, from the shapes of its weights and its state."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Self

import jax
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from smalti.compilation import device_bytes
from smalti.engines.generator.partition import DATA, HEADS_FIRST, KERNEL, MODEL, Partition
from smalti.engines.generator.state import abstract_state
from smalti.engines.generator.weights import abstract_weights
from smalti.errors import InvalidInputError
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
_TPU_KINDS: Final = {"TPU v5 lite": "v5e", "TPU v6 lite": "v6e", "TPU v5": "v5p"}
"""Names of TPUs, as JAX has them."""


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
    def of(
        cls,
        config: DalleBartConfig,
        dtype: DTypeLike,
        *,
        on_tpu: bool,
        int8_cache: bool = False,
        int8_weights: bool = False,
    ) -> Self:
        """Returns that of a model, computed with `dtype`; nothing is allocated."""
        mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), (DATA, MODEL))
        layout = KERNEL if on_tpu else HEADS_FIRST
        return cls.on(Partition(mesh, layout, int8_cache, int8_weights), config, dtype)

    @classmethod
    def on(cls, partition: Partition, config: DalleBartConfig, dtype: DTypeLike) -> Self:
        """Returns that of a model, as a partition arranges it; nothing is allocated."""
        alone = partition.mesh.devices[:1, :1]
        partition = replace(partition, mesh=Mesh(alone, (DATA, MODEL)))
        weights, split_weights = _bytes(abstract_weights(config, dtype, partition))
        slot, split_slot = _bytes(abstract_state(partition, config, 1, dtype, 1, 1))
        return cls(weights=weights, split_weights=split_weights, slot=slot, split_slot=split_slot)

    def per_device(self, slots: int, data: int = 1, model: int = 1) -> int:
        """Returns the bytes of each device of a mesh of `data` times `model` of them, with those of the programs."""
        slots_each = -(-slots // data)
        split = self.split_weights + slots_each * self.split_slot
        return WORKING_BYTES + self.weights + slots_each * self.slot + -(-split // model)


def check_fits(
    partition: Partition, config: DalleBartConfig, slots: int, dtype: DTypeLike, *, limit: int | None = None
) -> None:
    """Refuses a generator that its devices have no room for, before anything is put there.

    Args:
        partition: the devices.
        config: configuration of the model.
        slots: number of slots.
        dtype: the type to compute in.
        limit: bytes that it may use of each device; by default what the device says. Where that is unknown, as on a
            CPU, nothing is refused.

    Raises:
        InvalidInputError: it does not fit; says how much is needed, of how much, and what would help.
    """
    if limit is None:
        # Each process of a group asks its own devices.
        limits = map(_limit, partition.mesh.devices.flat)
        limit = min((each for each in limits if each is not None), default=None)
    if limit is None:
        return
    data, model = partition.mesh.shape[DATA], partition.mesh.shape[MODEL]
    needed = Footprint.on(partition, config, dtype).per_device(slots, data, model)
    if needed <= limit:
        return
    whole = partition.int8_cache and partition.int8_weights
    remedies = ("fewer slots", f"{data}x{4 * model}", *(() if whole else ("SMALTI_GENERATOR_INT8",)))
    raise InvalidInputError(
        "mesh",
        f"with {slots} slots on {data}x{model}, the generator needs {needed / 2**30:.1f} GiB of {limit / 2**30:.1f} of "
        f"each device: {', '.join(remedies[:-1])} or {remedies[-1]}",
    )


def _limit(device: jax.Device) -> int | None:
    """Returns the bytes that a program may use of a device, which need not be there; None if that is unknown."""
    if (said := device_bytes(device)) is not None:
        return said
    gib = DEVICE_GIB.get(_TPU_KINDS.get(device.device_kind, ""))
    return None if gib is None else int(gib * 2**30)


def _bytes(tree: Any) -> tuple[int, int]:
    """Returns the bytes of the arrays of which each device of a layer has all, and of those of which it has a part."""
    found = [0, 0]
    for leaf in jax.tree.leaves(tree):
        found[MODEL in leaf.sharding.spec] += leaf.size * leaf.dtype.itemsize
    return found[0], found[1]
