"""Finds out whether a job was cancelled while a stage works on it."""

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
    """Tells one task whether its job was cancelled; made by `Cancellations.watch`."""

    def __init__(self, job: str) -> None:
        self.job = job
        self._cancelled = threading.Event()
        self._on_cancel: Callable[[], None] | None = None
        self._lock = threading.Lock()

    def on_cancel(self, act: Callable[[], None]) -> None:
        """Sets what to call when the job is cancelled; calls it at once if it already was."""
        with self._lock:
            self._on_cancel = act
        if self._cancelled.is_set():
            act()

    def cancel(self) -> None:
        """Marks the job as cancelled."""
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
    """Polls the store for the cancellation markers of the jobs in progress, in one thread."""

    def __init__(self, store: ObjectStore, poll_seconds: float) -> None:
        """Starts the thread; it sleeps while no job is in progress.

        Args:
            store: where the gateway writes the markers.
            poll_seconds: interval between cancellation checks.
        """
        self._store = store
        self._poll_seconds = poll_seconds
        self._tokens: set[CancellationToken] = set()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="cancellations", daemon=True)
        self._thread.start()

    @contextmanager
    def watch(self, job: str) -> Iterator[CancellationToken]:
        """Polls for the cancellation of a job while the block runs."""
        token = CancellationToken(job)
        with self._changed:
            self._tokens.add(token)
            self._changed.notify()
        try:
            yield token
        finally:
            with self._changed:
                self._tokens.discard(token)

    def check_now(self, token: CancellationToken) -> None:
        """Checks at once whether the job was cancelled; raises `StoreUnavailableError`."""
        if self._is_cancelled(token.job):
            token.cancel()

    def close(self) -> None:
        """Stops polling."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._tokens or self._closing)
                self._changed.wait_for(lambda: self._closing, self._poll_seconds)
                if self._closing:
                    return
                tokens = list(self._tokens)
            for job in {token.job for token in tokens}:
                self._check_job(job, [token for token in tokens if token.job == job])

    def _check_job(self, job: str, tokens: list[CancellationToken]) -> None:
        try:
            cancelled = self._is_cancelled(job)
        except StorageError as error:
            log.debug("cannot tell whether %s was cancelled: %s", job, error)
            return
        for token in tokens if cancelled else ():
            token.cancel()

    def _is_cancelled(self, job: str) -> bool:
        return self._store.stat(JobKeys(job).cancelled) is not None
