"""The threads of a worker: interactive work goes first, and shards have threads of their own."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from celery.concurrency.base import apply_target
from celery.concurrency.thread import ApplyResult, TaskPool

from smalti.queue.broker.order import BatchTurns, is_batch_queue

SHARD_HEADER: Final = "smalti_shard"
"""The header of messages about shards, which take minutes: it decides which threads handle them, and nothing else."""
EXCESS: Final = "smalti_excess"
"""The key under which a worker notes that it has as many shards as it may have; it never leaves the process."""


class PriorityPool(TaskPool):
    """Celery's thread pool, in which interactive work does not queue behind batch work, and none waits for shards."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Takes the arguments of Celery's pools; `limit_shards` comes before the first message."""
        super().__init__(*arguments, **options)
        self._waiting: dict[bool, deque[Callable[[], None]]] = {False: deque(), True: deque()}
        self._turns = BatchTurns()
        self._lock = threading.Lock()
        self._max_shards = 1
        self._shards = 0
        self._shard_threads: ThreadPoolExecutor | None = None
        self._adjust: Callable[[Callable[[], None]], None] = lambda then: then()

    def limit_shards(self, limit: int, adjust: Callable[[Callable[[], None]], None]) -> None:
        """Sets how many shards are handled at the same time.

        Args:
            limit: the number.
            adjust: called when the number of shards that are handled has changed; has messages of batches arrive again
                or no longer, and then calls the function that it is given.
        """
        self._max_shards, self._adjust = limit, adjust
        self._shard_threads = ThreadPoolExecutor(limit, thread_name_prefix="shard")

    @property
    def shards(self) -> int:
        """Number of shards that are handled."""
        return self._shards

    @property
    def is_full(self) -> bool:
        """Whether no further shard can be handled."""
        return self._shards >= self._max_shards

    def on_apply(self, target: Any, args: Any = None, kwargs: Any = None, **options: Any) -> ApplyResult:
        """Queues a message. A free thread then takes the first in order, which may be another one."""
        request = args[2]
        callbacks = options.get("callback"), options.get("accept_callback")

        def run() -> None:
            apply_target(target, args, kwargs, *callbacks)

        if request.get(SHARD_HEADER) and self._shard_threads is not None:
            with self._lock:
                taken = not self.is_full
                self._shards += taken
            if taken:
                self._adjust(_nothing)
                return ApplyResult(self._shard_threads.submit(self._run_shard, run))
            # It came before the broker knew that this worker is full. It goes back once the broker does.
            request[EXCESS] = True
            self._adjust(lambda: self._enqueue(run, is_batch=False))
            return ApplyResult(self.executor.submit(_nothing))
        return self._enqueue(run, is_batch=is_batch_queue(request["delivery_info"]["routing_key"]))

    def run_next(self) -> bool:
        """Handles the first message in order; returns False when none waits."""
        with self._lock:
            interactive, batch = self._waiting[False], self._waiting[True]
            if not interactive and not batch:
                return False
            takes_batch = bool(batch) and (not interactive or self._turns.next_is_batch())
            run = (batch if takes_batch else interactive).popleft()
        run()
        return True

    def on_stop(self) -> None:
        """Abandons the threads: their time is up, and their messages go back to the broker."""
        for threads in (self.executor, self._shard_threads):
            if threads is not None:
                threads.shutdown(wait=False, cancel_futures=True)

    def _enqueue(self, run: Callable[[], None], *, is_batch: bool) -> ApplyResult:
        with self._lock:
            self._waiting[is_batch].append(run)
        return ApplyResult(self.executor.submit(self.run_next))

    def _run_shard(self, run: Callable[[], None]) -> None:
        try:
            run()
        finally:
            with self._lock:
                self._shards -= 1
            self._adjust(_nothing)


def _nothing() -> None:
    """Does nothing."""
