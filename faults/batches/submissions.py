"""Batches that a row has submitted."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from smalti.batches import seed_of_row
from smalti.errors import SmaltiError
from smalti.v1 import batch_pb2
from smalti.v1.batch_pb2 import Batch

ENDS: Final = {
    batch_pb2.BATCH_STATE_SUCCEEDED: "succeeded",
    batch_pb2.BATCH_STATE_FAILED: "failed",
    batch_pb2.BATCH_STATE_CANCELLED: "cancelled",
    batch_pb2.BATCH_STATE_EXPIRED: "expired",
}
SHARD_PROMPTS: Final = 4
CANDIDATES: Final = 2
"""Candidates of each prompt, which all become pictures."""


@dataclass
class BatchSubmission:
    """A submitted batch and its result. The lines of its input are its prompts; their seeds follow from the rows."""

    name: str
    prompts: tuple[str, ...]
    request_id: str
    asked: dict[str, Any] = field(default_factory=dict)
    failing: frozenset[int] = frozenset()
    """Rows that cannot be drawn."""
    invalid: frozenset[int] = frozenset()
    """Rows that cannot be used; all others must be drawn."""
    batch: str = ""
    """The id of the accepted batch; empty if it was not accepted."""
    refused: SmaltiError | None = None
    """The error with which it was refused."""
    end: Batch | None = None
    """The batch as it was first seen after its end."""
    files: Mapping[str, str] = field(default_factory=dict)
    """The SHA-256 of each file of its output; set when it was looked at."""

    @property
    def input_key(self) -> str:
        """The key of its input in the store."""
        return f"inputs/{self.name.replace(' ', '-')}.txt"

    @property
    def shard_prompts(self) -> int:
        """The number of prompts in a shard."""
        return int(self.asked.get("shard_prompts", SHARD_PROMPTS))

    @property
    def state(self) -> str:
        """The final state; "lost" for a batch without an end, "refused" for one that was not accepted."""
        if not self.batch:
            return "refused"
        return ENDS[self.end.state] if self.end else "lost"

    def state_of(self, row: int) -> str:
        """Returns the state that a row must have in the manifest."""
        return "failed" if row in self.failing else "invalid" if row in self.invalid else "drawn"

    def seed(self, row: int) -> int:
        """Returns the seed of a row."""
        return seed_of_row(int(self.asked.get("seed", 0)), row)

    def owns(self, job: str) -> bool:
        """Returns whether a job is a shard of the batch, or a part of one."""
        return bool(self.batch) and job.startswith(f"{self.batch}-")
