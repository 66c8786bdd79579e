"""Who goes first: interactive work, and now and then batch work, so that it is never kept waiting for ever."""

from collections.abc import Iterable
from typing import Final

from smalti.parameters import Priority

BATCH_TURN: Final = 8
"""Of so many turns one is the batch work's."""


def is_batch_queue(name: str) -> bool:
    """Says whether a queue is one of batch work."""
    return name.endswith(f".{Priority.BATCH.value}")


class Turns:
    """Counts turns."""

    def __init__(self) -> None:
        """Starts with turns of interactive work."""
        self._taken = 0

    def next_is_batch(self) -> bool:
        """Takes a turn, and says whether it is the batch work's."""
        self._taken = (self._taken + 1) % BATCH_TURN
        return self._taken == 0


class MostlyInOrder:
    """The order in which kombu asks Valkey's queues: interactive work first, and last at every eighth turn.

    Valkey gives out the first message it finds in that order.
    """

    def __init__(self, queues: Iterable[str] = ()) -> None:
        """Takes the queues."""
        self._turns = Turns()
        self.update(queues)

    def update(self, queues: Iterable[str]) -> None:
        """Takes other queues; kombu gives them in no order."""
        self._queues = sorted(queues, key=is_batch_queue)

    def consume(self, count: int) -> list[str]:
        """Returns the order for the next message."""
        queues = self._queues[:count]
        return queues[::-1] if self._turns.next_is_batch() else queues

    def rotate(self, last_used: str) -> str:
        """Is told which queue the last message came from, which changes nothing."""
        return last_used
