"""Lets work run side by side, and suspect work alone.

A message over which workers have died twice may be what kills them. It runs alone, after all other messages have been
given back to the broker: when it kills the worker again, it is known by that, and nothing else suffers for it.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Gate:
    """Counts what runs, and lets one run alone."""

    def __init__(
        self,
        on_close: Callable[[], None] = lambda: None,
        empty_hands: Callable[[], None] = lambda: None,
        on_open: Callable[[], None] = lambda: None,
    ) -> None:
        """Starts open, with nothing running.

        Args:
            on_close: lets nothing more come, and returns when nothing more does; called when suspect work begins to
                wait for the rest to end.
            empty_hands: gives back whatever else the worker has; called before suspect work runs.
            on_open: lets things come again.
        """
        self._on_close = on_close
        self._empty_hands = empty_hands
        self._on_open = on_open
        self._changed = threading.Condition()
        self._running = 0
        self._closed = False
        self._closing = False

    @property
    def running(self) -> int:
        """How many run."""
        return self._running

    @contextmanager
    def shared(self) -> Iterator[bool]:
        """Runs the block among others; gives False, and does not count it, when the gate is closed."""
        with self._changed:
            entered = not self._closed
            self._running += entered
        try:
            yield entered
        finally:
            self._leave(entered)

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Closes the gate, waits until the others have ended, and runs the block with nothing else in hand.

        Gives False, and does not count it, when the gate is closed already.
        """
        with self._changed:
            entered = not self._closed
            if entered:
                self._closed = self._closing = True
        if not entered:
            yield False
            return
        try:
            self._on_close()
            with self._changed:
                self._closing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._running == 0)
                self._running += 1
            try:
                self._empty_hands()
                yield True
            finally:
                self._leave(1)
        finally:
            with self._changed:
                self._closed = self._closing = False
                self._changed.notify_all()
            self._on_open()

    def wait_until_closed(self) -> None:
        """Waits, where the gate is being closed, until nothing more comes.

        What is sent back to the queue before would come again at once.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._closing)

    def wait_until_idle(self, timeout: float) -> bool:
        """Waits until nothing runs; returns False when the time, in seconds, is over before."""
        with self._changed:
            return self._changed.wait_for(lambda: self._running == 0, timeout)

    def _leave(self, count: int) -> None:
        with self._changed:
            self._running -= count
            self._changed.notify_all()
