"""The thread in which an engine computes, and the permits that limit how many calls wait for it.

Many messages and calls use the same encoder, decoder or ranker, each from its own thread. JAX and torch use all cores
for one computation, so two at a time would gain nothing and cost memory.
"""

import atexit
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any, TypeVar

from smalti.errors import EngineFailedError, OverloadedError, RequestFailedError, SmaltiError
from smalti.telemetry import tracing

log = logging.getLogger(__name__)

HUNG_SECONDS = 10.0
"""Time that `close` gives a computation which has stalled."""

Result = TypeVar("Result")


def _traced(compute: Callable[[], Result]) -> Result:
    """Computes, and records begin and end in the current span."""
    tracing.event(tracing.COMPUTE_BEGINS)
    try:
        return compute()
    finally:
        tracing.event(tracing.COMPUTE_ENDS)


class ComputeThread:
    """Runs one computation at a time; thread-safe."""

    slots = 1

    def __init__(
        self,
        *,
        max_permits: int,
        stall_seconds: float,
        check: Callable[[], object],
    ) -> None:
        """Starts the thread.

        Args:
            max_permits: calls that may be in progress at the same time; see `permit`.
            stall_seconds: if a computation takes longer, the engine counts as dead.
            check: computes something that is known to work. It is called when a computation has failed unexpectedly: if
                it fails too, the engine counts as dead; otherwise only that computation has failed.
        """
        self._check = check
        self._max_permits = max_permits
        self._stall_seconds = stall_seconds
        self._queue: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._changed = threading.Condition()
        self._current: Future[Any] | None = None
        self._began = 0.0
        self._mean_seconds = 0.0
        self._permits = 0
        self._failure: BaseException | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="compute", daemon=True)
        self._thread.start()
        # Python would end a thread that computes during the interpreter's shutdown, and the C++ code of JAX and torch,
        # which such an end must pass, aborts the process then: "FATAL: exception not rethrown".
        atexit.register(self.close)

    @property
    def healthy(self) -> bool:
        """Whether the thread takes computations; also checks whether the current one hangs."""
        with self._changed:
            hangs = self._current is not None and time.monotonic() - self._began > self._stall_seconds
            if hangs and self._failure is None:
                self._fail(TimeoutError(f"a computation took more than {self._stall_seconds:g} s"))
            return self._failure is None

    @property
    def failure(self) -> BaseException | None:
        """Why the engine counts as dead; None while it works."""
        return self._failure

    @property
    def active(self) -> int:
        """1 during a computation, else 0."""
        return int(self._current is not None)

    @property
    def waiting(self) -> int:
        """Number of computations that wait."""
        return len(self._queue)

    @contextmanager
    def permit(self) -> Iterator[None]:
        """Holds a permit for a call.

        Messages need none: the consumer's concurrency limits them.

        Raises:
            OverloadedError: no permit is free; tells when to try again.
        """
        with self._changed:
            taken = self._permits
            if taken < self._max_permits:
                self._permits += 1
        if taken >= self._max_permits:
            seconds = max(1.0, taken * self._mean_seconds)
            raise OverloadedError(f"{taken} calls are already waiting; try again in {seconds:.0f} s", seconds)
        try:
            yield
        finally:
            with self._changed:
                self._permits -= 1

    def submit(self, compute: Callable[[], Result]) -> "Future[Result]":
        """Queues a computation; it is dropped if its future is cancelled before its turn.

        Raises:
            EngineFailedError: the engine counts as dead or was closed.
        """
        future: Future[Result] = Future()
        # Logs and traces of the computation belong to the caller.
        caller = copy_context()
        with self._changed:
            if self._failure is not None or self._closing:
                raise self._stopped(begun=False)
            self._queue.append((future, lambda: caller.run(_traced, compute)))
            self._changed.notify()
        return future

    def run(self, compute: Callable[[], Result]) -> Result:
        """Computes and returns the result; raises as `submit` does."""
        return self.submit(compute).result()

    def close(self) -> None:
        """Stops after the current computation; those that wait fail."""
        with self._changed:
            self._closing = True
            self._fail_waiting()
            self._changed.notify()
        self._thread.join(None if self._failure is None else HUNG_SECONDS)
        atexit.unregister(self.close)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closing)
                if self._failure is not None or not self._queue:
                    return
                future, compute = self._queue.popleft()
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
        unexpected = error is not None and not isinstance(error, SmaltiError)
        works = not unexpected or self._works()
        with self._changed:
            seconds = time.monotonic() - self._began
            self._mean_seconds = 0.8 * self._mean_seconds + 0.2 * seconds if self._mean_seconds else seconds
            self._current = None
            if self._failure is not None:
                return  # The computation stalled, and its future has failed already.
            if error is None:
                future.set_result(result)
            elif not unexpected:
                future.set_exception(error)
            elif works:
                log.error("the engine fails over one request, which ends", exc_info=error)
                failed = RequestFailedError("the engine fails over this request, and over no other")
                failed.__cause__ = error
                future.set_exception(failed)
            else:
                log.error("a computation failed, and the check of the engine too", exc_info=error)
                self._current = future
                self._fail(error)
                self._current = None

    def _works(self) -> bool:
        try:
            self._check()
        except Exception:
            log.exception("the check of the engine failed")
            return False
        return True

    def _fail(self, failure: BaseException) -> None:
        """Declares the engine dead, and fails the current and all waiting computations."""
        self._failure = failure
        if self._current is not None:
            self._current.set_exception(self._stopped(begun=True))
        self._fail_waiting()
        self._changed.notify()

    def _fail_waiting(self) -> None:
        while self._queue:
            future, _ = self._queue.popleft()
            if future.set_running_or_notify_cancel():
                future.set_exception(self._stopped(begun=False))

    def _stopped(self, *, begun: bool) -> EngineFailedError:
        if self._failure is None:
            return EngineFailedError("the engine was closed", begun=begun)
        error = EngineFailedError(f"the engine has stopped: {self._failure!r}", begun=begun)
        error.__cause__ = self._failure
        return error
