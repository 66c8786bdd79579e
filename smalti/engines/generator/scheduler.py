"""Who is drawn next: a bounded line in two priorities."""

import threading
from collections import deque
from collections.abc import Callable, Iterator

from smalti.engines.generator.requests import GenerationHandle
from smalti.errors import EngineFullError
from smalti.parameters import Priority

# Of so many slots that are given away while both kinds wait, one goes to a batch request.
BATCH_TURN = 8


class RequestQueue:
    """Requests with candidates that have no slot yet.

    Within a priority it is first come, first served. A request may be of any size when nobody waits; otherwise the
    candidates that wait are bounded, so that memory and waiting time are.
    """

    def __init__(self, max_candidates: int) -> None:
        """Makes an empty line for at most so many candidates."""
        self.max_candidates = max_candidates
        self._lines: dict[Priority, deque[GenerationHandle]] = {priority: deque() for priority in Priority}
        self._next: dict[GenerationHandle, int] = {}
        self._given_away = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """The candidates that wait."""
        with self._lock:
            return self._waiting()

    def join(self, handle: GenerationHandle, retry_after: Callable[[int], float]) -> None:
        """Puts a request at the end.

        Args:
            handle: the request's.
            retry_after: from the number of waiting candidates to the seconds after which there should be room.

        Raises:
            EngineFullError: there is no room.
        """
        with self._lock:
            waiting = self._waiting()
            if waiting and waiting + len(handle.request.candidates) > self.max_candidates:
                raise EngineFullError(waiting, retry_after(waiting))
            self._lines[handle.request.priority].append(handle)
            self._next[handle] = 0

    def take(self, slots: int) -> Iterator[tuple[GenerationHandle, list[int]]]:
        """Yields who gets up to `slots` slots: a handle, and the places of its candidates in the request."""
        taken: dict[GenerationHandle, list[int]] = {}
        with self._lock:
            for _ in range(slots):
                line = self._whose_turn()
                if line is None:
                    break
                handle = line[0]
                taken.setdefault(handle, []).append(self._next[handle])
                self._next[handle] += 1
                if self._next[handle] == len(handle.request.candidates):
                    line.popleft()
                    del self._next[handle]
        yield from taken.items()

    def leave(self, unwanted: Callable[[GenerationHandle], bool]) -> list[GenerationHandle]:
        """Takes requests out of the line and returns them."""
        with self._lock:
            gone = [handle for line in self._lines.values() for handle in line if unwanted(handle)]
            for handle in gone:
                self._lines[handle.request.priority].remove(handle)
                del self._next[handle]
        return gone

    def _whose_turn(self) -> deque[GenerationHandle] | None:
        interactive, batch = self._lines[Priority.INTERACTIVE], self._lines[Priority.BATCH]
        if interactive and batch:
            self._given_away += 1
            return batch if self._given_away % BATCH_TURN == 0 else interactive
        return interactive or batch or None

    def _waiting(self) -> int:
        return sum(len(handle.request.candidates) - drawn for handle, drawn in self._next.items())
