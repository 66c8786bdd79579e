"""What crashed workers of this machine were doing: read from their journals, and recorded with the jobs."""

import logging
import threading

from smalti.errors import UnavailableError
from smalti.queue.crashes.journal import Crash, WorkJournal
from smalti.queue.crashes.poison import PoisonRecords

logger = logging.getLogger(__name__)


class CrashLearner:
    """Records the crashes of workers of this machine; thread-safe."""

    def __init__(self, journal: WorkJournal | None, records: PoisonRecords | None) -> None:
        """Learns nothing without a journal or without records."""
        self._journal = journal
        self._records = records
        self._lock = threading.Lock()
        self.untold = False
        """Whether the store was away when a crash was to be recorded."""

    def learn(self) -> None:
        """Records what crashed workers were doing; when the store is away, the next message does."""
        if self._journal is None or self._records is None:
            return
        # The messages of a crashed worker come back together: whoever is second waits until the crash is recorded.
        with self._lock:
            try:
                self._journal.take_crashes(self._record)
                self.untold = False
            except UnavailableError as error:
                self.untold = True
                logger.warning("the crash of a worker cannot be recorded yet: %s", error)

    def _record(self, crash: Crash) -> None:
        assert self._records is not None
        for job, works in crash.items():
            logger.warning("a worker has crashed over %s; its work at this stage runs alone", job)
            self._records.add(job, works, alone=False)
