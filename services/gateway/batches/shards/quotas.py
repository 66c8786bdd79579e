"""How many candidates of batches may have slots at a time: for a revision, a batch, and a tenant."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from smalti.parameters import Priority
from smalti.services.gateway.database.tables import (
    IS_LEASED,
    IS_LEASED_SHARD,
    PRIORITY_NUMBERS,
    Batch,
    Chunk,
    ChunkProgress,
    Shard,
)
from smalti.services.gateway.models import RevisionState

PER_WORKER: Final = 3
"""Shards for each generator that are not generated yet: two that it works on, since the second fills what the end of
the first leaves free, and one whose prompts are encoded."""
ALL_PER_WORKER: Final = 6
"""Shards for each generator in all stages together, so that they do not pile up before a slow decoder."""
MIN_SHARE: Final = 4
"""A shard is sent with a limit of slots only if that is at least this part of a generator's slots, or all that the
batch or its tenant may have."""


class InFlight(NamedTuple):
    """A shard that is in the queues."""

    batch_id: str
    tenant: str
    revision: str | None
    reached: int
    slots: int | None


@dataclass
class Usage:
    """What the shards in the queues use; counted once, since many choices are made of it."""

    sent: Counter[str | None] = field(default_factory=Counter)
    """Shards by revision."""
    not_generated: Counter[str | None] = field(default_factory=Counter)
    """Those of them that are not generated yet, which alone have slots."""
    of_batch: Counter[str] = field(default_factory=Counter)
    """Candidates that may have slots, by batch."""
    of_tenant: Counter[str] = field(default_factory=Counter)
    """The same by tenant, with the candidates of batch jobs that are in the queues."""

    @classmethod
    def load(cls, session: Session) -> "Usage":
        """Reads it; there are few such rows, whatever waits."""
        columns = Shard.batch_id, Batch.tenant, Shard.revision, Shard.reached, Shard.slots
        shards = select(*columns).join(Batch, Batch.id == Shard.batch_id).where(IS_LEASED_SHARD)
        chunks = (
            select(Chunk.tenant, func.sum(Chunk.count))
            .where(IS_LEASED, Chunk.priority == PRIORITY_NUMBERS[Priority.BATCH])
            .group_by(Chunk.tenant)
        )
        usage = cls()
        for row in session.execute(shards):
            usage.add(InFlight(*row))
        for tenant, count in session.execute(chunks):
            usage.of_tenant[tenant] += int(count)
        return usage

    def add(self, shard: InFlight) -> None:
        """Counts a shard that is in the queues, or about to be sent."""
        self.sent[shard.revision] += 1
        if shard.reached < ChunkProgress.GENERATED:
            self.not_generated[shard.revision] += 1
            self.of_batch[shard.batch_id] += shard.slots or 0
            self.of_tenant[shard.tenant] += shard.slots or 0

    def room(self, state: RevisionState) -> int:
        """Returns how many shards more a revision can take."""
        revision = state.card.revision
        return min(
            PER_WORKER * state.generators - self.not_generated[revision],
            ALL_PER_WORKER * state.generators - self.sent[revision],
        )

    def slots(self, state: RevisionState, batch: Batch, max_of_tenant: int | None) -> int | None:
        """Returns how many candidates of a further shard may have slots; None for no limit, 0 if it must wait.

        Args:
            state: the revision that draws it.
            batch: its batch.
            max_of_tenant: candidates of batches and batch jobs that its tenant may have at a time.
        """
        whole = max(1, state.slots // max(state.generators, 1))
        limits = []
        if batch.slots is not None:
            limits.append((batch.slots, self.of_batch[batch.id]))
        if max_of_tenant is not None:
            limits.append((max_of_tenant, self.of_tenant[batch.tenant]))
        given = whole
        for limit, used in limits:
            left = limit - used
            if left < min(limit, max(1, whole // MIN_SHARE)):
                return 0
            given = min(given, left)
        return given if limits else None
