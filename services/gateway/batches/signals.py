"""What wakes the parts of the room, and who is told what becomes of batches."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from smalti.services.gateway.database.tables import BatchState


@dataclass(frozen=True, kw_only=True)
class BatchOutcome:
    """The end of a batch."""

    batch_id: str
    state: BatchState
    reason: str
    """`ErrorInfo.reason` of a failed batch; empty otherwise."""
    seconds: float
    """Time from its acceptance to its end."""


def _ignore(*arguments: object) -> None:
    pass


@dataclass
class BatchSignals:
    """Set or called from any thread, after the change is committed."""

    to_plan: threading.Event = field(default_factory=threading.Event)
    """There is a batch to plan."""
    to_send: threading.Event = field(default_factory=threading.Event)
    """There may be shards to send."""
    to_finish: threading.Event = field(default_factory=threading.Event)
    """There is a batch to finish."""
    to_clean: threading.Event = field(default_factory=threading.Event)
    """There are objects to delete."""
    changed: Callable[[str], None] = _ignore
    """A batch has a new version; takes its id."""
    ended: Callable[[BatchOutcome], None] = _ignore
    """A batch has ended."""
    shards_ended: Callable[[str, int], None] = _ignore
    """Takes what has become of shards (`done`, `halved` or `failed`), and how many."""
    prompts_ended: Callable[[str, int], None] = _ignore
    """Takes what has become of prompts (`drawn` or `failed`), and how many."""
    rows_planned: Callable[[int], None] = _ignore
    """Takes how many rows of an input were read."""
    lost: Callable[[int], None] = _ignore
    """Takes how many leases of shards have expired."""

    def tell_end(self, outcome: BatchOutcome) -> None:
        """Tells of the end of a batch, of which much is deleted then."""
        self.ended(outcome)
        self.changed(outcome.batch_id)
        self.to_clean.set()

    def tell_shard(
        self, batch_id: str, outcome: str, *, drawn: int = 0, failed: int = 0, is_last: bool = False
    ) -> None:
        """Tells what has become of a shard, and of its prompts.

        Args:
            batch_id: its batch.
            outcome: as `shards_ended` takes it.
            drawn: prompts that are drawn.
            failed: prompts that have failed.
            is_last: whether the batch has no others left to draw.
        """
        self.shards_ended(outcome, 1)
        for what, count in (("drawn", drawn), ("failed", failed)):
            if count:
                self.prompts_ended(what, count)
        self.changed(batch_id)
        (self.to_finish if is_last else self.to_send).set()
