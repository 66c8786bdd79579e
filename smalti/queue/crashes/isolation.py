"""Runs messages concurrently, and suspect messages alone.

A message over which workers have crashed twice may be the cause. It runs alone, after all other messages were returned
to the broker: if the worker crashes again, the cause is known and nothing else is lost.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

POLL_SECONDS: Final = 0.1
"""Interval between looks at what cannot be waited for."""


class IsolationGate:
    """A lock that many messages share, or one message holds alone."""

    def __init__(
        self,
        *,
        pause: Callable[[], None] = lambda: None,
        return_others: Callable[[], None] = lambda: None,
        resume: Callable[[], None] = lambda: None,
    ) -> None:
        """Starts open, with nothing running.

        Args:
            pause: stops the arrival of messages, and returns when no more arrive; called before a suspect message
                waits for the others to end.
            return_others: returns all other messages to the broker; called before a suspect message runs.
            resume: lets messages arrive again.
        """
        self._pause = pause
        self._return_others = return_others
        self._resume = resume
        self._changed = threading.Condition()
        self._running = 0
        self._closed = False
        self._closing = False

    @property
    def closed(self) -> bool:
        """Whether a message wants to run alone, or does."""
        return self._closed

    @property
    def running(self) -> int:
        """The number of messages that run."""
        return self._running

    @contextmanager
    def shared(self) -> Iterator[bool]:
        """Runs the block among others; yields False, and does not count it, when the gate is closed."""
        with self._changed:
            entered = not self._closed
            self._running += entered
        try:
            yield entered
        finally:
            self._leave(entered)

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Closes the gate, waits until the others have ended, and runs the block alone.

        Yields False, and does not count it, when the gate is closed already.
        """
        with self._changed:
            entered = not self._closed
            if entered:
                self._closed = self._closing = True
        if not entered:
            yield False
            return
        try:
            self._pause()
            with self._changed:
                self._closing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._running == 0)
                self._running += 1
            try:
                self._return_others()
                yield True
            finally:
                self._leave(1)
        finally:
            with self._changed:
                self._closed = self._closing = False
                self._changed.notify_all()
            self._resume()

    def wait_until_closed(self) -> None:
        """Waits while the gate is closing: a message that is returned before would arrive again at once."""
        with self._changed:
            self._changed.wait_for(lambda: not self._closing)

    def wait_until_idle(self, timeout: float) -> bool:
        """Waits until nothing runs; returns False after `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._running == 0, timeout)

    def _leave(self, count: int) -> None:
        with self._changed:
            self._running -= count
            self._changed.notify_all()


class DrainOrGate(threading.Event):
    """Set when the worker stops, or when another message must run alone."""

    def __init__(self, draining: threading.Event, gate: IsolationGate) -> None:
        super().__init__()
        self._draining = draining
        self._gate = gate

    def is_set(self) -> bool:
        """Returns whether one of both is the case."""
        return self._draining.is_set() or self._gate.closed

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until one of both is the case, or the time has passed; returns whether one is."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.is_set() and (deadline is None or time.monotonic() < deadline):
            self._draining.wait(POLL_SECONDS)
        return self.is_set()
