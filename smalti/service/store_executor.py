"""Concurrent calls of the object store: a stage waits longer for the store than its objects take to transfer."""

import contextvars
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

THREADS = 16

Item = TypeVar("Item")
Result = TypeVar("Result")


class StoreExecutor:
    """Runs calls in a pool of threads, with the caller's context variables, so that logs and traces know the task."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="store")

    def submit(self, call: Callable[[], Result]) -> "Future[Result]":
        """Runs a call in a thread of the pool."""
        return self._threads.submit(contextvars.copy_context().run, call)

    def map(self, call: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Returns the results of a call for each item, in order; raises the first error."""
        first, *others = items
        futures = [self.submit(lambda item=item: call(item)) for item in others]  # type: ignore[misc]
        try:
            return [call(first), *(future.result() for future in futures)]
        finally:
            for future in futures:
                future.cancel()

    def close(self) -> None:
        """Waits for the calls that run, and ends the threads."""
        self._threads.shutdown()
