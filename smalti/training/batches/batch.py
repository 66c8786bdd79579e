"""The inputs of a training step, made while the device works on the previous step."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import numpy as np

Batch = Mapping[str, np.ndarray]
"""Arrays whose first axis is the pictures of a step."""

T = TypeVar("T")


class Prefetched(Generic[T]):
    """A function of the step's number that computes its next value in the background."""

    def __init__(self, make: Callable[[int], T]) -> None:
        self._make = make
        self._pool = ThreadPoolExecutor(1, "prefetch")
        self._next: tuple[int, Future[T]] | None = None

    def __call__(self, step: int) -> T:
        """Returns the value of a step and starts computing the value of the step after it."""
        value = (
            self._next[1].result() if self._next is not None and self._next[0] == step else self._make(step)
        )
        self._next = step + 1, self._pool.submit(self._make, step + 1)
        return value
