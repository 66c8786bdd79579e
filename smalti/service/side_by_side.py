"""Waiting for several things at the same time: a stage's calls of the store take longer than what they carry."""

import contextvars
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

THREADS = 16

Item = TypeVar("Item")
Result = TypeVar("Result")


class StoreExecutor:
    """Calls in threads of its own, with what the log and the traces know of the caller."""

    def __init__(self) -> None:
        """Starts no thread before there is something to call."""
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="store")

    def submit(self, call: Callable[[], Result]) -> "Future[Result]":
        """Calls in another thread."""
        return self._threads.submit(contextvars.copy_context().run, call)

    def map(self, call: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Calls for each item, and returns the results in order when all are there; the first error is raised."""
        first, *others = items
        futures = [self.submit(lambda item=item: call(item)) for item in others]  # type: ignore[misc]
        try:
            return [call(first), *(future.result() for future in futures)]
        finally:
            for future in futures:
                future.cancel()

    def close(self) -> None:
        """Waits for what was called, and ends the threads."""
        self._threads.shutdown()
