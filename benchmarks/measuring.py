"""Times with their spread, and the limits of the machine."""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from smalti.models.layers import precision


@dataclass(frozen=True)
class Times:
    """Times of several runs of the same work, in seconds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median, in seconds."""
        return statistics.median(self.seconds)

    def scaled(self, factor: float) -> "Times":
        """Returns the times of `factor` times the work."""
        return Times(tuple(factor * each for each in self.seconds))

    def __str__(self) -> str:
        lowest, highest = min(self.seconds), max(self.seconds)
        return f"{format_seconds(self.median)} ({format_seconds(lowest)} to {format_seconds(highest)})"


def format_seconds(seconds: float) -> str:
    """Returns a time with three significant digits, in milliseconds below one second."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def measure(work: Callable[[], object], repeats: int) -> Times:
    """Runs the work once to warm up, then times `repeats` runs."""
    work()
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return Times(tuple(seconds))


@dataclass(frozen=True)
class Limits:
    """The highest rates that the machine reaches with JAX."""

    operations: float
    """Operations per second in a large matrix product; a multiplication and an addition are two operations."""
    bandwidth: float
    """Bytes per second when a large array is read."""

    def floor(self, operations: float, size: float) -> float:
        """Returns the minimum time of work in seconds, if it overlaps all its operations with all its reads."""
        return max(operations / self.operations, size / self.bandwidth)


def measure_limits(dtype: DTypeLike, *, side: int, size: int) -> Limits:
    """Measures both limits as the best of several runs.

    Args:
        dtype: the type to compute in.
        side: rows and columns of the matrices.
        size: size of the array that is read, in bytes; must be well above the processor's cache.
    """
    # Random, since a GPU multiplies zeros and ones faster than it could multiply anything else.
    square = jax.random.normal(jax.random.key(0), (side, side), dtype)
    array = jnp.ones(size // jnp.dtype(dtype).itemsize, dtype)
    product = jax.jit(lambda a: jnp.dot(a, a, precision=precision(dtype)))
    # A sum in float32 over each of many rows, so that all cores read and almost nothing is written.
    total = jax.jit(lambda a: a.reshape(1024, -1).astype(jnp.float32).sum(axis=1))

    def best(function: Any, argument: Any) -> float:
        return min(measure(lambda: jax.block_until_ready(function(argument)), 9).seconds)

    return Limits(2 * side**3 / best(product, square), array.nbytes / best(total, array))


class Bystanders:
    """Measures the share of the cores that other processes use; if it is large, times are not meaningful."""

    def __init__(self) -> None:
        self._begin = self._read()

    def share(self) -> float:
        """Returns the share of all cores that other processes have used since this object was made, 0 to 1."""
        busy, total, own = (now - then for now, then in zip(self._read(), self._begin, strict=True))
        return max(0.0, busy - own) / total if total else 0.0

    def _read(self) -> tuple[float, float, float]:
        """Returns processor seconds since boot: busy, total, and those of this process and its children."""
        fields = [int(each) for each in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        ticks = os.sysconf("SC_CLK_TCK")
        idle = fields[3] + fields[4]
        own = os.times()
        of_own = own.user + own.system + own.children_user + own.children_system
        return (sum(fields) - idle) / ticks, sum(fields) / ticks, of_own


def describe_machine() -> dict[str, str]:
    """Returns the facts about the machine on which results depend."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "unknown",
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": f"{cpu}, {len(os.sched_getaffinity(0))} cores, {memory / 2**30:.0f} GiB",
        "JAX device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
