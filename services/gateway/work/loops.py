"""Work that is done again and again, in threads of its own: when it is asked for, and now and then in any case."""

import logging
import threading
from collections.abc import Callable
from typing import Final

from smalti.errors import UnavailableError

log = logging.getLogger(__name__)

PAUSE_SECONDS: Final = 0.5
"""After something that is needed did not answer; twice as long after every time."""
MAX_PAUSE_SECONDS: Final = 2.0


class Loop:
    """Calls a function whenever `wake` is set, and when it was not for a while."""

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
            name: for the log.
            work: is called; what it raises is logged, and it is called again after a pause.
            seconds: the longest time between two calls.
            wake: set by whoever has work.
            delay: how long to wait after it was set, so that more may come together.
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
        """Whether the work is being done."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def stop(self, seconds: float) -> bool:
        """Ends after the call that is running; returns False if that takes longer than so many seconds."""
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
                pause = min(2 * pause or PAUSE_SECONDS, MAX_PAUSE_SECONDS)
                log.warning("%s: %s; again in %.1f s", self._name, error, pause)
            except Exception:
                pause = MAX_PAUSE_SECONDS
                log.exception("%s has failed; again in %.1f s", self._name, pause)
            if pause:
                self._stopped.wait(pause)
                self.wake.set()
