"""What the workers of a machine are working on, so that it is known when one of them has crashed.

Each worker keeps a file, and a lock on it that ends with the process. A file without a lock is the last word of a
worker that was killed, whatever killed it; one that is only slow, or suspended, still has its lock. A change costs a
few microseconds: the file need not survive the machine, only the process.
"""

import fcntl
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

MAX_AGE_SECONDS: Final = 24 * 3600.0
"""Age after which the file of a crashed worker is deleted unread: nobody waits for its work any more."""

Crash = dict[str, set[str]]
"""The work that a worker was doing when it crashed, by job."""


class WorkJournal:
    """The journal of one worker; thread-safe. Without a folder that it can write to, it keeps nothing."""

    def __init__(self, folder: Path, scope: str) -> None:
        """Opens a journal.

        Args:
            folder: the folder of the journals; on this machine, and the same after a restart.
            scope: names the workers that share queue and store; only they read each other's files.
        """
        self._folder = folder
        self._scope = scope
        self._entries: dict[tuple[str, str], int] = {}
        self._lost: set[tuple[str, str]] = set()
        self._lock = threading.Lock()
        self._file: int | None = None
        self._size = 0
        self.path = folder / f"{scope}-{secrets.token_hex(8)}.json"
        hidden = folder / f".{self.path.name}"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._file, fcntl.LOCK_EX)
            hidden.rename(self.path)  # Nobody sees it without its lock.
        except OSError as error:
            log.warning("crashes of this worker will not be known; %s cannot be used: %s", folder, error)

    def begin(self, job: str, work: str) -> None:
        """Notes that work begins."""
        with self._lock:
            self._entries[job, work] = self._entries.get((job, work), 0) + 1
            self._write()

    def end(self, job: str, work: str) -> None:
        """Notes that work has ended."""
        with self._lock:
            left = self._entries.pop((job, work), 1) - 1
            if left > 0:
                self._entries[job, work] = left
            self._write()

    def take_crashes(self, tell: Callable[[Crash], None]) -> None:
        """Calls a function with what each crashed worker was doing, and forgets it; raises what the function raises."""
        for path in self._folder.glob(f"{self._scope}-*.json") if self._file is not None else ():
            if path == self.path:
                continue
            try:
                file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except OSError:
                continue  # Another worker was faster.
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                crash = _read(file)
                if crash and path.exists():
                    tell(crash)
                path.unlink(missing_ok=True)
            except BlockingIOError:
                continue  # Its worker lives.
            finally:
                os.close(file)

    def crash(self, job: str, work: str) -> None:
        """Notes that the process is about to end over work, which is left to the next one to read."""
        with self._lock:
            self._lost.add((job, work))

    def close(self) -> None:
        """Gives up the lock; only what `crash` has noted is left."""
        with self._lock:
            if self._file is None:
                return
            self._entries = dict.fromkeys(self._lost, 1)
            if self._entries:
                self._write()
            else:
                self.path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = None

    def _write(self) -> None:
        if self._file is None:
            return
        text = json.dumps({"time": time.time(), "works": list(self._entries)}).encode()
        padded = text.ljust(self._size)  # One write, so that a crash leaves no half of it.
        self._size = len(text)
        with suppress(OSError):
            os.pwrite(self._file, padded, 0)


def _read(file: int) -> Crash:
    """Returns the work in a file; nothing if it is too old or cannot be read."""
    crash: Crash = {}
    with suppress(ValueError, TypeError, KeyError):
        content = json.loads(os.pread(file, os.fstat(file).st_size, 0))
        if time.time() - content["time"] < MAX_AGE_SECONDS:
            for job, work in content["works"]:
                crash.setdefault(str(job), set()).add(str(work))
    return crash
