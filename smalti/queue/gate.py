"""Lets work run side by side, and suspect work alone.

A message over which workers have died twice may be what kills them. It runs alone, after all other messages have been
given back to the broker: when it kills the worker again, nothing else is in that worker's hands, and nothing else is
suspected for it.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Gate:
    """Counts what runs, and lets one run alone."""

    def __init__(self, on_change: Callable[[bool], None] = lambda closed: None) -> None:
        """Starts open, with nothing running.

        Args:
            on_change: told when the gate closes, with True, and when it opens again.
        """
        self._on_change = on_change
        self._changed = threading.Condition()
        self._running = 0
        self._suspects = 0
        self._alone = threading.Lock()

    @property
    def closed(self) -> bool:
        """Whether suspect work runs, or waits for the rest to end: nothing else may begin."""
        return self._suspects > 0

    @property
    def running(self) -> int:
        """How many run."""
        return self._running

    @contextmanager
    def shared(self) -> Iterator[bool]:
        """Runs the block among others; gives False, and does not count it, when the gate is closed."""
        with self._changed:
            entered = not self.closed
            self._running += entered
        try:
            yield entered
        finally:
            self._leave(entered)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Closes the gate, waits until the others have ended, and runs the block; one after the other."""
        with self._changed:
            self._suspects += 1
            if self._suspects == 1:
                self._on_change(True)
        try:
            with self._alone:
                with self._changed:
                    self._changed.wait_for(lambda: self._running == 0)
                    self._running += 1
                try:
                    yield
                finally:
                    self._leave(1)
        finally:
            with self._changed:
                self._suspects -= 1
                if self._suspects == 0:
                    self._on_change(False)

    def wait_until_idle(self, timeout: float) -> bool:
        """Waits until nothing runs; returns False when the time, in seconds, is over before."""
        with self._changed:
            return self._changed.wait_for(lambda: self._running == 0, timeout)

    def _leave(self, count: int) -> None:
        with self._changed:
            self._running -= count
            self._changed.notify_all()
