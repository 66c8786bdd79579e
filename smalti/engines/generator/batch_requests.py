"""The requests in the slots of a batch: what raises for one of them ends that one alone."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from smalti.engines.generator.batch import Batch
from smalti.engines.generator.recovery import Bisection, Interrupted
from smalti.engines.generator.requests import GenerationHandle, TokenRun
from smalti.engines.generator.scheduler import RequestQueue
from smalti.engines.generator.state import Prefix
from smalti.errors import RequestFailedError

log = logging.getLogger(__name__)


@dataclass
class Slot:
    """The candidate in a slot, as the loop tracks it."""

    handle: GenerationHandle
    candidate: int
    """Index among the candidates of the request."""
    position: int
    """Position of the next token in the picture."""


class BatchRequests:
    """The requests in the slots of a batch. Not thread-safe: it belongs to the engine's loop.

    When a step fails, its requests are put into slots again, in parts, until the one is found over which steps fail.
    That one ends; the others get the same tokens as without it, only later. New requests wait meanwhile.
    """

    def __init__(self, batch: Batch, queue: RequestQueue) -> None:
        """Takes the batch, with free slots, and the queue of requests without slots."""
        self.batch = batch
        self._queue = queue
        self._in_use: dict[int, Slot] = {}
        # By encoding, as long as candidates of the request wait.
        self._prefixes: dict[GenerationHandle, dict[int, Prefix]] = {}
        self._bisection = Bisection()
        # Requests of a failed batch that are to be put into slots again.
        self._returning: list[Interrupted] = []

    @property
    def active(self) -> int:
        """Number of slots in use."""
        return len(self._in_use)

    @property
    def busy(self) -> bool:
        """Whether there are requests that are in slots, or were when a step failed."""
        return bool(self._in_use or self._returning or self._bisection.active)

    def admit(self) -> None:
        """Fills free slots: first with requests of a failed batch, then from the queue.

        Raises:
            Exception: the batch fails, and does so without requests too.
        """
        while self._returning or (self._bisection.active and not self._in_use):
            if not self._returning:  # Those on trial have ended meanwhile.
                self._returning = self._bisection.next_trial()
                continue
            member = self._returning.pop(0)
            self._place(member.handle, list(member.positions))
        if not self._bisection.active:
            for handle, indices in self._queue.take(self.batch.slots - self.active):
                self._place(handle, indices)

    def step(self) -> int | None:
        """Makes one dispatch, delivers its tokens, and frees finished slots.

        Returns:
            The number of tokens; None if the step failed.

        Raises:
            Exception: the step fails, and the batch does so without requests too.
        """
        try:
            tokens = self.batch.step()
        except Exception as error:
            self._recover(error)
            return None
        count = self._deliver(tokens)
        if self._bisection.active:
            self._returning += self._bisection.advanced(self._positions())
        return count

    def drop(self, unwanted: Callable[[GenerationHandle], bool]) -> set[GenerationHandle]:
        """Frees the slots of the requests for which `unwanted` is true, and returns these requests."""
        freed = [slot for slot, held in self._in_use.items() if unwanted(held.handle)]
        gone = {self._in_use.pop(slot).handle for slot in freed}
        if freed:
            self.batch.release(freed)
        for handle in [handle for handle in self._prefixes if unwanted(handle)]:
            del self._prefixes[handle]
        return gone

    def _place(self, handle: GenerationHandle, indices: list[int]) -> None:
        """Puts candidates of a request into free slots; when that fails, the request ends."""
        if handle.done:
            return
        handle.begun = True
        request, prefixes = handle.request, self._prefixes.setdefault(handle, {})
        free = [slot for slot in range(self.batch.slots) if slot not in self._in_use]
        try:
            for encoding, members in request.by_encoding(indices).items():
                if encoding not in prefixes:
                    prefixes[encoding] = self.batch.prefill(request.encodings[encoding])
                slots, free = free[: len(members)], free[len(members) :]
                candidates = [request.candidates[index] for index in members]
                for slot, index, candidate in zip(slots, members, candidates, strict=True):
                    self._in_use[slot] = Slot(handle, index, candidate.start(self.batch.image_length))
                self.batch.insert(prefixes[encoding], slots, candidates)
        except Exception as error:
            self._take_out(handle, error)
        if handle not in self._queue:
            self._prefixes.pop(handle, None)

    def _take_out(self, handle: GenerationHandle, error: Exception) -> None:
        """Ends a request that cannot be put into slots; the others stay in theirs, if the batch still has them."""
        try:
            self.drop(lambda other: other is handle)
            self.batch.check()
        except Exception:
            members = self._interrupted()
            self._empty(error)
            self._returning = members + self._returning
        self._end(handle, error)

    def _recover(self, error: Exception) -> None:
        """Runs the requests of a failed step again, at first some of them; ends the one that is to blame."""
        members = self._interrupted()
        self._empty(error)
        log.warning("a step with %d requests failed; they are generated again: %r", len(members), error)
        self._returning, guilty = self._bisection.failed(members)
        if guilty is not None:
            self._end(guilty, error)

    def _empty(self, error: Exception) -> None:
        """Frees all slots, and makes a step without requests; raises the error if the batch fails then too."""
        slots = list(self._in_use)
        self._in_use.clear()
        try:
            self.batch.release(slots)  # Enough if the error came before the step took the state.
            self.batch.check()
        except Exception:
            self._reset(error)
        try:
            self.batch.step()
        except Exception:
            raise error from None

    def _reset(self, error: Exception) -> None:
        try:
            self.batch.reset()
            self.batch.check()
        except Exception:
            raise error from None

    def _end(self, handle: GenerationHandle, error: Exception) -> None:
        """Ends a request that is to blame for an error."""
        log.error("the generator fails over one request, which ends", exc_info=error)
        failed = RequestFailedError("the engine fails over this request, and over no other")
        failed.__cause__ = error
        handle.fail(failed)
        self._queue.remove(lambda other: other is handle)
        self._prefixes.pop(handle, None)

    def _deliver(self, tokens: Int[np.ndarray, "slots steps"]) -> int:
        """Delivers the tokens of one dispatch, frees finished slots, and returns the number of tokens."""
        total = 0
        broken: dict[GenerationHandle, Exception] = {}
        for slot, held in list(self._in_use.items()):
            new = tokens[slot, : self.batch.image_length - held.position]
            start = held.position
            held.position += len(new)
            total += len(new)
            if held.position == self.batch.image_length:
                del self._in_use[slot]
            try:
                held.handle.deliver(TokenRun(held.candidate, start, new))
            except Exception as error:  # From the caller's function for tokens.
                broken[held.handle] = error
        for handle, cause in broken.items():
            self._end(handle, cause)
        if broken:
            self.drop(broken.__contains__)
        return total

    def _positions(self) -> dict[GenerationHandle, dict[int, int]]:
        """Returns the position of each candidate in the batch, by request and index of the candidate."""
        positions: dict[GenerationHandle, dict[int, int]] = {}
        for held in self._in_use.values():
            positions.setdefault(held.handle, {})[held.candidate] = held.position
        return positions

    def _interrupted(self) -> list[Interrupted]:
        return [
            Interrupted(handle=handle, positions=positions) for handle, positions in self._positions().items()
        ]
