"""Finds out that a job which is being worked on was cancelled."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from smalti.errors import StorageError
from smalti.messages import FailureReason
from smalti.queue import PermanentError
from smalti.storage import JobKeys, ObjectStore

log = logging.getLogger(__name__)


class CancellationToken:
    """Work that may be taken back while it is done."""

    def __init__(self, job: str) -> None:
        """Is made by `Cancellations.watch`."""
        self.job = job
        self._cancelled = threading.Event()
        self._on_cancel: Callable[[], None] | None = None
        self._lock = threading.Lock()

    def on_cancel(self, act: Callable[[], None]) -> None:
        """Has something done when the job is cancelled; at once, if it has been."""
        with self._lock:
            self._on_cancel = act
        if self._cancelled.is_set():
            act()

    def cancel(self) -> None:
        """Notes that the job was cancelled."""
        with self._lock:
            act = self._on_cancel
            self._cancelled.set()
        if act:
            act()

    def check(self) -> None:
        """Raises `PermanentError` if the job was cancelled."""
        if self._cancelled.is_set():
            raise PermanentError(FailureReason.CANCELLED, "the job was cancelled")


class Cancellations:
    """Looks for the markers of cancelled jobs: when it is asked, and now and then while work runs, in one thread."""

    def __init__(self, store: ObjectStore, poll_seconds: float) -> None:
        """Begins to look when there is work."""
        self._store = store
        self._poll_seconds = poll_seconds
        self._watched: set[CancellationToken] = set()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="cancellations", daemon=True)
        self._thread.start()

    @contextmanager
    def watch(self, job: str) -> Iterator[CancellationToken]:
        """Looks now and then whether a job was cancelled, while the block runs."""
        watched = CancellationToken(job)
        with self._changed:
            self._watched.add(watched)
            self._changed.notify()
        try:
            yield watched
        finally:
            with self._changed:
                self._watched.discard(watched)

    def look(self, watched: CancellationToken) -> None:
        """Looks now whether a job was cancelled; raises `StoreUnavailableError`."""
        if self._is_cancelled(watched.job):
            watched.cancel()

    def close(self) -> None:
        """Looks no more."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._watched or self._closing)
                self._changed.wait_for(lambda: self._closing, self._poll_seconds)
                if self._closing:
                    return
                watched = list(self._watched)
            for job in {each.job for each in watched}:
                self._look(job, [each for each in watched if each.job == job])

    def _look(self, job: str, watched: list[CancellationToken]) -> None:
        try:
            cancelled = self._is_cancelled(job)
        except StorageError as error:
            log.debug("whether %s was cancelled is not known: %s", job, error)
            return
        for each in watched if cancelled else ():
            each.cancel()

    def _is_cancelled(self, job: str) -> bool:
        return self._store.stat(JobKeys(job).cancelled) is not None
