"""The scheduler of candidates: a bounded queue with two priorities."""

import threading
from collections import deque
from collections.abc import Callable, Iterator

from smalti.engines.generator.requests import GenerationHandle
from smalti.errors import EngineFullError
from smalti.parameters import Priority

BATCH_TURN = 8
"""While both priorities wait, one slot in this many goes to a batch request."""


class RequestQueue:
    """Requests with candidates that have no slot yet; first come, first served within a priority. Thread-safe.

    The number of waiting candidates is bounded, so that memory and waiting time are. An empty queue accepts a request
    of any size.
    """

    def __init__(self, max_candidates: int) -> None:
        """Makes an empty queue for at most `max_candidates` candidates."""
        self.max_candidates = max_candidates
        self._queues: dict[Priority, deque[GenerationHandle]] = {priority: deque() for priority in Priority}
        # Index of the next candidate of each request.
        self._next: dict[GenerationHandle, int] = {}
        self._contended = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """The number of waiting candidates."""
        with self._lock:
            return self._waiting()

    def __contains__(self, handle: GenerationHandle) -> bool:
        """Whether candidates of a request wait."""
        with self._lock:
            return handle in self._next

    def put(self, handle: GenerationHandle, retry_after: Callable[[int], float]) -> None:
        """Appends a request.

        Args:
            handle: handle of the request.
            retry_after: returns, for a number of waiting candidates, the seconds after which there should be room.

        Raises:
            EngineFullError: there is no room.
        """
        with self._lock:
            waiting = self._waiting()
            if waiting and waiting + len(handle.request.candidates) > self.max_candidates:
                raise EngineFullError(waiting, retry_after(waiting))
            self._queues[handle.request.priority].append(handle)
            self._next[handle] = 0

    def take(self, slots: int) -> Iterator[tuple[GenerationHandle, list[int]]]:
        """Takes up to `slots` candidates; yields each handle with the indices of its candidates."""
        taken: dict[GenerationHandle, list[int]] = {}
        with self._lock:
            for _ in range(slots):
                waiting = self._choose_queue()
                if waiting is None:
                    break
                handle = waiting[0]
                taken.setdefault(handle, []).append(self._next[handle])
                self._next[handle] += 1
                if self._next[handle] == len(handle.request.candidates):
                    waiting.popleft()
                    del self._next[handle]
        yield from taken.items()

    def remove(self, unwanted: Callable[[GenerationHandle], bool]) -> list[GenerationHandle]:
        """Removes the requests for which `unwanted` is true, and returns them."""
        with self._lock:
            gone = [handle for waiting in self._queues.values() for handle in waiting if unwanted(handle)]
            for handle in gone:
                self._queues[handle.request.priority].remove(handle)
                del self._next[handle]
        return gone

    def _choose_queue(self) -> deque[GenerationHandle] | None:
        interactive, batch = self._queues[Priority.INTERACTIVE], self._queues[Priority.BATCH]
        if interactive and batch:
            self._contended += 1
            return batch if self._contended % BATCH_TURN == 0 else interactive
        return interactive or batch or None

    def _waiting(self) -> int:
        return sum(len(handle.request.candidates) - taken for handle, taken in self._next.items())
