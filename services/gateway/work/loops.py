"""Background threads that call a function when they are woken, and at regular intervals."""

import logging
import threading
from collections.abc import Callable
from typing import Final

from smalti.errors import UnavailableError

log = logging.getLogger(__name__)

MIN_PAUSE_SECONDS: Final = 0.5
"""Pause after a failed call; it doubles with every further failure."""
MAX_PAUSE_SECONDS: Final = 2.0


class Loop:
    """Calls a function in its own thread whenever `wake` is set, and at least once per interval."""

    def __init__(
        self,
        name: str,
        work: Callable[[], object],
        *,
        seconds: float,
        wake: threading.Event | None = None,
        delay: float = 0.0,
    ) -> None:
        """Does nothing before `start`.

        Args:
            name: name of the thread, for the log.
            work: the function. An exception is logged, and the function is called again after a pause.
            seconds: maximum time between two calls.
            wake: set by other threads when there is work.
            delay: time to wait after `wake` is set, so that more work can be collected.
        """
        self.wake = wake or threading.Event()
        self._name = name
        self._work = work
        self._seconds = seconds
        self._delay = delay
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self, seconds: float) -> bool:
        """Stops the thread after the current call; returns False if the call takes longer than the given time."""
        self._stopped.set()
        self.wake.set()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        pause = 0.0
        while not self._stopped.is_set():
            self.wake.wait(self._seconds)
            if self._stopped.wait(self._delay if self.wake.is_set() else 0):
                return
            self.wake.clear()
            try:
                self._work()
                pause = 0.0
            except UnavailableError as error:
                pause = min(2 * pause or MIN_PAUSE_SECONDS, MAX_PAUSE_SECONDS)
                log.warning("%s: %s; trying again in %.1f s", self._name, error, pause)
            except Exception:
                pause = MAX_PAUSE_SECONDS
                log.exception("%s failed; trying again in %.1f s", self._name, pause)
            if pause:
                self._stopped.wait(pause)
                self.wake.set()
