"""Compiling ahead, for devices that need not be there.

Meanwhile every `Program` is compiled when it is called, and runs nothing: it returns arrays that have a shape, a type
and a place, and no values. So an engine is started as a service starts it, and what is compiled is what the service
will call.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from smalti.compilation.key import Call, aval_of, devices_of


class AbsentArray(jax.ShapeDtypeStruct):
    """Stands for an array on a device that is not there; on the host its values are zeros."""

    __slots__ = ()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Returns zeros, for an engine that copies results to the host."""
        return np.zeros(self.shape, self.dtype if dtype is None else dtype)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of each device that a program needs, as it is laid out there."""

    arguments: int
    results: int
    """Without those that take the place of arguments."""
    temporary: int
    code: int

    @classmethod
    def of(cls, compiled: jax.stages.Compiled) -> "Memory | None":
        """Returns what the compiler says; None if it says nothing."""
        found = compiled.memory_analysis()
        if found is None:
            return None
        return cls(
            arguments=found.argument_size_in_bytes,
            results=found.output_size_in_bytes - found.alias_size_in_bytes,
            temporary=found.temp_size_in_bytes,
            code=found.generated_code_size_in_bytes,
        )

    @property
    def total(self) -> int:
        """All of it."""
        return self.arguments + self.results + self.temporary + self.code


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """A program that was compiled ahead."""

    name: str
    call: Call
    """What it is called with."""
    compiled: jax.stages.Compiled
    tree: Any
    """The tree of the leaves that it returns."""
    devices: tuple[int, ...]
    """The ids of its devices, in its own order."""
    memory: Memory | None
    seconds: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Ahead:
    """What is compiled for, and where the programs go."""

    devices: tuple[jax.Device, ...]
    keep: Callable[[Compiled], None]
    """Called with each program; by several threads."""
    keep_shapes: Callable[[str, Any, dict[str, tuple[int, ...]]], None]
    """Called with a function's name, its configuration, and the shapes that it found."""

    def everywhere(self, static: Sequence[Any], leaves: Sequence[Any]) -> Sharding:
        """Returns the sharding of an array that every device of a program holds.

        Args:
            static: the static arguments of the program, which may have a mesh.
            leaves: the leaves of the others.
        """
        shardings = (leaf.sharding for leaf in leaves if isinstance(leaf, AbsentArray))
        meshes = [each.mesh for each in shardings if isinstance(each, NamedSharding)]
        meshes += [mesh for each in static if isinstance(mesh := getattr(each, "mesh", None), Mesh)]
        return NamedSharding(meshes[0], PartitionSpec()) if meshes else SingleDeviceSharding(self.devices[0])

    def stand_in(self, leaf: Any, everywhere: Sharding) -> AbsentArray:
        """Returns what stands for an argument."""
        shape, dtype, weak, sharding = aval_of(leaf)
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            sharding = None  # The place of an array of this process means nothing elsewhere.
        dtype = jax.dtypes.canonicalize_dtype(dtype)
        return AbsentArray(shape, dtype, sharding=sharding or everywhere, weak_type=weak)


_current: Ahead | None = None


def ahead() -> Ahead | None:
    """Returns what is compiled for ahead; None in a process that runs what it compiles."""
    return _current


@contextmanager
def compiling_ahead(given: Ahead) -> Iterator[None]:
    """Compiles ahead what is called in the block, in all threads of this process."""
    global _current
    if _current is not None:
        raise RuntimeError("this process compiles ahead already")
    _current = given
    try:
        yield
    finally:
        _current = None


def devices() -> Sequence[jax.Device]:
    """Returns the devices that compute: those of this process, unless it compiles ahead for others."""
    given = ahead()
    return given.devices if given else jax.devices()


def backend() -> str:
    """Returns the platform of these devices: `cpu`, `gpu` or `tpu`."""
    given = ahead()
    return given.devices[0].platform if given else jax.default_backend()


def device_bytes(device: jax.Device) -> int | None:
    """Returns the bytes that programs may use of a device; None if it is a CPU, or not one of this process."""
    if ahead() is not None or device.process_index != jax.process_index():
        return None
    found: int | None = (device.memory_stats() or {}).get("bytes_limit")
    return found


def put(array: Any, sharding: Sharding | None = None) -> Any:
    """Copies an array from the host to the devices, as `jax.device_put`; ahead, keeps only its shape and type."""
    if ahead() is not None:
        dtype = jax.dtypes.canonicalize_dtype(array.dtype)
        return AbsentArray(array.shape, dtype, sharding=sharding)
    if sharding is not None and not sharding.is_fully_addressable:
        # Every process has the same array. `device_put` would have them compare all of it.
        return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])
    return jax.device_put(array, sharding)


def ids_of(shardings: Sequence[Sharding]) -> tuple[int, ...]:
    """Returns the ids of the devices of a program by the shardings of its results."""
    return tuple(device.id for device in devices_of(shardings[0]))
