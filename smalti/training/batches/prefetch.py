"""Making the next batch while the device works on this one."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetched(Generic[T]):
    """A function of the step's number whose next value is already being made."""

    def __init__(self, make: Callable[[int], T]) -> None:
        self._make = make
        self._pool = ThreadPoolExecutor(1, "prefetch")
        self._next: tuple[int, Future[T]] | None = None

    def __call__(self, step: int) -> T:
        """Returns the value of a step, and begins that of the one after."""
        value = (
            self._next[1].result() if self._next is not None and self._next[0] == step else self._make(step)
        )
        self._next = step + 1, self._pool.submit(self._make, step + 1)
        return value
