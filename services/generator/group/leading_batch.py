"""The leader's batch: every call that computes is made by all processes of the group, in the same order."""

import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from jaxtyping import Int

from smalti.engines.encoding import Encoding
from smalti.engines.generator.batch import Batch
from smalti.engines.generator.requests import Candidate
from smalti.engines.generator.state import Prefix
from smalti.services.generator.group.frames import Frame, candidate_values, encoding_frame
from smalti.services.generator.group.leader import GroupError, Leader


class LeadingBatch:
    """A batch that tells the other processes of each call before it makes the call itself.

    The others are not waited for: what the devices exchange keeps them together. Once a call has failed, it is unknown
    what the others have done, so that all further calls fail and the group starts again.
    """

    def __init__(self, batch: Batch, leader: Leader) -> None:
        """Takes the leader's own batch."""
        self._batch = batch
        self._leader = leader
        self._failed = False
        # Prefixes stay with their processes; they are named by number.
        self._numbers: dict[int, int] = {}
        self._prefixes = 0
        self._forgotten: deque[int] = deque()
        self.slots, self.image_length = batch.slots, batch.image_length
        self.steps_per_dispatch = batch.steps_per_dispatch

    def warm_up(self, *, everything: bool) -> None:  # noqa: D102
        with self._by_all(Frame(do="warm_up", values={"everything": everything})):
            self._batch.warm_up(everything=everything)

    def prefill(self, encoding: Encoding) -> Prefix:  # noqa: D102
        self._prefixes += 1
        number = self._prefixes
        with self._by_all(encoding_frame("prefill", encoding, prefix=number)):
            prefix = self._batch.prefill(encoding)
        self._numbers[id(prefix)] = number
        # Called on whichever thread frees the prefix, so that it only notes the number.
        weakref.finalize(prefix, self._forget, id(prefix))
        return prefix

    def insert(  # noqa: D102
        self, prefix: Prefix, slots: Sequence[int], candidates: Sequence[Candidate]
    ) -> None:
        values: dict[str, Any] = {
            "prefix": self._numbers[id(prefix)],
            "slots": list(map(int, slots)),
            "candidates": [candidate_values(each) for each in candidates],
        }
        with self._by_all(Frame(do="insert", values=values)):
            self._batch.insert(prefix, slots, candidates)

    def release(self, slots: Sequence[int]) -> None:  # noqa: D102
        with self._by_all(Frame(do="release", values={"slots": list(map(int, slots))})):
            self._batch.release(slots)

    def step(self) -> Int[np.ndarray, "slots steps"]:  # noqa: D102
        with self._by_all(Frame(do="step")):
            return self._batch.step()

    def check(self) -> None:  # noqa: D102
        with self._by_all(Frame(do="check")):
            self._batch.check()

    def reset(self) -> None:  # noqa: D102
        with self._by_all(Frame(do="reset")):
            self._batch.reset()

    @contextmanager
    def _by_all(self, frame: Frame) -> Iterator[None]:
        """Has the others make a call while the block makes it here."""
        if self._failed:
            raise GroupError("a call has failed in one process of the group, and the others may have made it")
        while self._forgotten:
            self._leader.send(Frame(do="forget", values={"prefix": self._forgotten.popleft()}))
        self._leader.send(frame)
        try:
            yield
        except BaseException:
            self._failed = True
            raise

    def _forget(self, identity: int) -> None:
        self._forgotten.append(self._numbers.pop(identity))
