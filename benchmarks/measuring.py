"""Times with their spread, and what the machine itself can do at best."""

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
    """How long the same work took, several times, in seconds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.seconds)

    def scaled(self, factor: float) -> "Times":
        """Returns the times of `factor` times the work."""
        return Times(tuple(factor * each for each in self.seconds))

    def __str__(self) -> str:
        least, most = min(self.seconds), max(self.seconds)
        return f"{format_seconds(self.median)} ({format_seconds(least)} to {format_seconds(most)})"


def format_seconds(seconds: float) -> str:
    """Returns seconds with three digits that count, in milliseconds where they are few."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def measure(work: Callable[[], object], repeats: int) -> Times:
    """Does the work once to warm up, then `repeats` times against the clock."""
    work()
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return Times(tuple(seconds))


@dataclass(frozen=True)
class Limits:
    """What the machine reaches at best, in JAX, on work that does nothing else."""

    operations: float
    """Of a large matrix product, in 1/s; a multiplication and an addition are two."""
    bandwidth: float
    """Of reading a large array, in bytes/s."""

    def floor(self, operations: float, size: float) -> float:
        """Returns the seconds that work cannot be faster than: as if its operations hid all reading, or the reverse."""
        return max(operations / self.operations, size / self.bandwidth)


def measure_limits(dtype: DTypeLike, *, side: int, size: int) -> Limits:
    """Measures both limits; the best of several runs counts.

    Args:
        dtype: the type to compute in.
        side: of the square matrices.
        size: of the array that is read, in bytes; well above the processor's cache.
    """
    square = jnp.ones((side, side), dtype)
    array = jnp.ones(size // jnp.dtype(dtype).itemsize, dtype)
    product = jax.jit(lambda a: jnp.dot(a, a, precision=precision(dtype)))
    # A sum in float32 of each of many rows: all cores read, and nothing is written.
    total = jax.jit(lambda a: a.reshape(1024, -1).astype(jnp.float32).sum(axis=1))

    def best(function: Any, argument: Any) -> float:
        return min(measure(lambda: jax.block_until_ready(function(argument)), 9).seconds)

    return Limits(2 * side**3 / best(product, square), array.nbytes / best(total, array))


class Bystanders:
    """How much of the cores other processes take meanwhile: times measured beside them mean little."""

    def __init__(self) -> None:
        self._begin = self._read()

    def share(self) -> float:
        """Returns the share of all cores that others have used since this object was made, 0 to 1."""
        busy, total, own = (now - then for now, then in zip(self._read(), self._begin, strict=True))
        return max(0.0, busy - own) / total if total else 0.0

    def _read(self) -> tuple[float, float, float]:
        """Returns seconds since the start: all cores busy, all cores in all, and this process with its children."""
        fields = [int(each) for each in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        ticks = os.sysconf("SC_CLK_TCK")
        idle = fields[3] + fields[4]
        own = os.times()
        of_own = own.user + own.system + own.children_user + own.children_system
        return (sum(fields) - idle) / ticks, sum(fields) / ticks, of_own


def describe_machine() -> dict[str, str]:
    """Returns what a reader has to know of the machine."""
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
