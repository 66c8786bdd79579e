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
