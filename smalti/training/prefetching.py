"""Values that are computed in the background: the batches of the next steps, while the device works on this one."""

import multiprocessing
import os
import pickle
import signal
import tempfile
import threading
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Generic, TypeVar

import jax

from smalti.errors import SmaltiError

T = TypeVar("T")


class Prefetched(Generic[T]):
    """A function of a number, whose next values are computed in the background.

    On a CPU the trainer needs all cores, and one thread is enough. A GPU waits for its pictures unless many processes
    make them.
    """

    def __init__(self, make: Callable[[int], T], processes: int = 0) -> None:
        """Starts no process before the first call.

        Args:
            make: the function; with processes, it must be possible to pickle it.
            processes: number of processes that compute values; 0 for one thread of this process.
        """
        self._ahead = 2 * processes or 1
        self._make = make
        self._processes = processes
        self._pool: Executor | None = None
        self._values: deque[tuple[int, Future[T]]] = deque()

    def __call__(self, number: int) -> T:
        """Returns the value of a number and starts computing those of the numbers after it.

        Raises:
            SmaltiError: a process ended before it had computed its value.
        """
        if self._pool is None:
            self._pool = _start(self._make, self._processes)
        function = _call_made if self._processes else self._make
        while self._values and self._values[0][0] != number:
            self._values.popleft()[1].cancel()
        started = self._values[-1][0] + 1 if self._values else number
        try:
            for each in range(started, number + self._ahead + 1):
                self._values.append((each, self._pool.submit(function, each)))
            return self._values.popleft()[1].result()
        except BrokenProcessPool:
            raise SmaltiError(
                "a process that makes batches was ended by the system; free some memory and continue with --resume"
            ) from None


def processes_for_batches() -> int:
    """Returns the number of processes that make batches: none on a CPU, else one for each core but two."""
    return 0 if jax.default_backend() == "cpu" else max(1, len(os.sched_getaffinity(0)) - 2)


def _start(make: Callable[[int], Any], processes: int) -> Executor:
    if not processes:
        return ThreadPoolExecutor(1, "prefetch")
    file, path = tempfile.mkstemp(prefix="smalti-")
    with os.fdopen(file, "wb") as opened:
        pickle.dump(make, opened)
    # A fork would copy the locks of JAX's threads. As an argument, the function would be sent to one process after the
    # other, each time waiting for its start.
    pool = ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), initializer=_enter, initargs=(path,)
    )
    weakref.finalize(pool, os.unlink, path)
    return pool


_made: Callable[[int], Any]


def _enter(path: str) -> None:
    """Prepares a process that makes batches."""
    global _made
    # Ctrl-C reaches all processes; the trainer ends these itself, after its last step.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    # Set before the function's modules are imported. The accelerator belongs to the trainer.
    os.environ.update(JAX_PLATFORMS="cpu", OMP_NUM_THREADS="1")
    _made = pickle.loads(Path(path).read_bytes())


def _end_with_parent() -> None:
    """Ends this process with the trainer, which may be killed before it can end its processes."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _call_made(number: int) -> Any:
    return _made(number)
