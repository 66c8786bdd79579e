"""The one thread in which an engine computes, and the places of those who wait for it.

Encoder, decoder and ranker are called from the threads of many messages and calls, and are not made for that: JAX and
torch use all cores for one computation, so two at the same time gain nothing and cost memory.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any, TypeVar

from smalti.errors import EngineFailedError, OverloadedError, SmaltiError
from smalti.telemetry import tracing

log = logging.getLogger(__name__)

MAX_FAILURES = 3
"""After so many computations in a row that failed for no known reason the engine counts as dead: what a device that is
lost, or memory that is gone, looks like."""

Result = TypeVar("Result")


def _told(compute: Callable[[], Result]) -> Result:
    """Computes, and notes when in the span of the work."""
    tracing.event(tracing.COMPUTE_BEGINS)
    try:
        return compute()
    finally:
        tracing.event(tracing.COMPUTE_ENDS)


class ComputeThread:
    """Computes one thing after the other; every thread may use it."""

    slots = 1

    def __init__(self, *, max_permits: int, stall_seconds: float) -> None:
        """Starts the thread.

        Args:
            max_permits: calls that may be under way; see `place`.
            stall_seconds: a computation that takes longer is given up, and the engine with it.
        """
        self._max_permits = max_permits
        self._stall_seconds = stall_seconds
        self._line: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._changed = threading.Condition()
        self._current: Future[Any] | None = None
        self._began = 0.0
        self._mean_seconds = 0.0
        self._places = 0
        self._failures = 0
        self._failure: BaseException | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="compute", daemon=True)
        self._thread.start()

    @property
    def healthy(self) -> bool:
        """Whether it computes; looks whether it hangs."""
        with self._changed:
            hangs = self._current is not None and time.monotonic() - self._began > self._stall_seconds
            if hangs and self._failure is None:
                self._fail(TimeoutError(f"a computation has taken more than {self._stall_seconds:g} s"))
            return self._failure is None

    @property
    def failure(self) -> BaseException | None:
        """Why it computes no more."""
        return self._failure

    @property
    def active(self) -> int:
        """1 while it computes."""
        return int(self._current is not None)

    @property
    def waiting(self) -> int:
        """Computations that wait."""
        return len(self._line)

    @contextmanager
    def place(self) -> Iterator[None]:
        """Holds one of the places for a call.

        Messages need none: how many of them are under way is the queue's to say.

        Raises:
            OverloadedError: all are taken; says when to come again.
        """
        with self._changed:
            taken = self._places
            if taken < self._max_permits:
                self._places += 1
        if taken >= self._max_permits:
            seconds = max(1.0, taken * self._mean_seconds)
            raise OverloadedError(f"{taken} calls wait already; try again in {seconds:.0f} s", seconds)
        try:
            yield
        finally:
            with self._changed:
                self._places -= 1

    def submit(self, compute: Callable[[], Result]) -> "Future[Result]":
        """Lets something be computed when its turn comes, unless its future is cancelled before.

        Raises:
            EngineFailedError: nothing is computed any more.
        """
        future: Future[Result] = Future()
        # The log and the trace of what is computed are those of whoever asks for it.
        asker = copy_context()
        with self._changed:
            if self._failure is not None or self._closing:
                raise self._stopped()
            self._line.append((future, lambda: asker.run(_told, compute)))
            self._changed.notify()
        return future

    def run(self, compute: Callable[[], Result]) -> Result:
        """Computes something and waits for it; see `submit`."""
        return self.submit(compute).result()

    def close(self) -> None:
        """Stops after the computation that runs; those that wait fail."""
        with self._changed:
            self._closing = True
            self._fail_waiting()
            self._changed.notify()
        if self._failure is None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._line or self._closing)
                if self._failure is not None or not self._line:
                    return
                future, compute = self._line.popleft()
                if not future.set_running_or_notify_cancel():
                    continue
                self._current, self._began = future, time.monotonic()
            self._compute(future, compute)

    def _compute(self, future: "Future[Any]", compute: Callable[[], Any]) -> None:
        result, error = None, None
        try:
            result = compute()
        except BaseException as raised:
            error = raised
        with self._changed:
            seconds = time.monotonic() - self._began
            self._mean_seconds = 0.8 * self._mean_seconds + 0.2 * seconds if self._mean_seconds else seconds
            self._current = None
            if self._failure is not None:
                return  # It was given up meanwhile, and whoever waits was told so.
            if error is None:
                self._failures = 0
                future.set_result(result)
                return
            future.set_exception(error)
            if not isinstance(error, SmaltiError):
                self._failures += 1
                log.error("a computation failed, %d in a row", self._failures, exc_info=error)
                if self._failures >= MAX_FAILURES:
                    self._fail(error)

    def _fail(self, failure: BaseException) -> None:
        """Gives the engine up, and tells whoever waits."""
        self._failure = failure
        if self._current is not None:
            self._current.set_exception(self._stopped())
        self._fail_waiting()
        self._changed.notify()

    def _fail_waiting(self) -> None:
        while self._line:
            future, _ = self._line.popleft()
            if future.set_running_or_notify_cancel():
                future.set_exception(self._stopped())

    def _stopped(self) -> EngineFailedError:
        if self._failure is None:
            return EngineFailedError("the engine was closed")
        error = EngineFailedError(f"the engine has stopped: {self._failure!r}")
        error.__cause__ = self._failure
        return error
