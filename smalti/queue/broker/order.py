"""The order of messages: interactive work first, with a share for batch work so that it does not starve."""

from collections.abc import Iterable
from typing import Final

from smalti.parameters import Priority

BATCH_EVERY: Final = 8
"""One turn in this many goes to batch work."""


def is_batch_queue(name: str) -> bool:
    """Returns whether a queue holds batch work."""
    return name.endswith(f".{Priority.BATCH.value}")


class BatchTurns:
    """Decides which turns go to batch work. Not thread-safe."""

    def __init__(self) -> None:
        self._taken = 0

    def next_is_batch(self) -> bool:
        """Takes a turn; returns whether it goes to batch work."""
        self._taken = (self._taken + 1) % BATCH_EVERY
        return self._taken == 0


class InteractiveFirst:
    """The order in which kombu polls Valkey's queues: interactive work first, batch work first at every eighth turn.

    Valkey returns the first message that it finds in this order. Queues of the same priority take turns at being the
    first. The methods are those of kombu's queue cycles.
    """

    def __init__(self, queues: Iterable[str] = ()) -> None:
        self._turns = BatchTurns()
        self._taken = 0
        self.update(queues)

    def update(self, queues: Iterable[str]) -> None:
        """Replaces the queues, which kombu passes in any order."""
        names = sorted(queues)
        self._interactive = [name for name in names if not is_batch_queue(name)]
        self._batch = [name for name in names if is_batch_queue(name)]

    def consume(self, count: int) -> list[str]:
        """Returns the order for the next message."""
        self._taken += 1
        interactive = _rotated(self._interactive, self._taken)
        batch = _rotated(self._batch, self._taken // BATCH_EVERY)
        queues = [*batch, *interactive] if self._turns.next_is_batch() else [*interactive, *batch]
        return queues[:count]

    def rotate(self, last_used: str) -> str:
        """Does nothing: the order does not depend on the queue that was used last."""
        return last_used


def _rotated(names: list[str], turn: int) -> list[str]:
    first = turn % len(names) if names else 0
    return names[first:] + names[:first]
