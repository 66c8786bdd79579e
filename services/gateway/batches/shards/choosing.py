"""Chooses which batches send shards next: tenants take turns, and inside a tenant the highest rank comes first."""

import logging
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final, NamedTuple

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from smalti.services.gateway.batches.shards.quotas import InFlight, Usage
from smalti.services.gateway.batches.spec import UnreadableBatchError, parameters_of
from smalti.services.gateway.database.tables import (
    IS_OPEN_BATCH,
    IS_WAITING_SHARD,
    Batch,
    BatchState,
    ChunkProgress,
    Shard,
    Tenant,
)
from smalti.services.gateway.jobs.context import GatewayContext
from smalti.services.gateway.models import Catalogue, ModelCard, RevisionState

log = logging.getLogger(__name__)

MAX_BATCHES: Final = 1000
"""Batches of a tenant, and of all, that are looked at together."""


class Choice(NamedTuple):
    """A batch that may send a shard."""

    batch_id: str
    revision: RevisionState
    slots: int | None
    """Candidates of the shard that may have slots at a time."""


@dataclass
class _Line:
    """The batches of a tenant that have shards to send."""

    tenant: str
    weight: int
    max_slots: int | None
    batches: list[Batch]


class ShardPicker:
    """Picks batches; one thread per gateway. It remembers whose turn it was."""

    def __init__(self, context: GatewayContext) -> None:
        self._catalogue = context.catalogue
        self._settings = context.settings
        self._unreadable: set[str] = set()
        """Batches that this version of the gateway cannot read, which another one sends."""
        self._last = ""
        """The tenant whose turn it was last."""

    def pick(self, session: Session, *, limit: int) -> list[Choice]:
        """Returns which batches may each send a further shard, in the order of turns; a batch may occur often."""
        lines = self._lines(session)
        if not lines:
            return []
        usage = Usage.load(session)
        turns = deque((line, self._choices(session, line, usage, limit)) for line in lines)
        # The turn goes on after the tenant that had the last one.
        turns.rotate(-sum(line.tenant <= self._last for line in lines) % len(lines))
        choices: list[Choice] = []
        while turns and len(choices) < limit:
            line, of_line = turns.popleft()
            if found := list(islice(of_line, min(line.weight, limit - len(choices)))):
                choices += found
                self._last = line.tenant
                turns.append((line, of_line))
        return choices

    def note_unreadable(self, batch_id: str, error: UnreadableBatchError) -> None:
        """Leaves a batch to other gateways from now on."""
        log.error("the shards of a batch are left to other gateways: %s", error, extra={"batch": batch_id})
        self._unreadable.add(batch_id)

    def _choices(self, session: Session, line: _Line, usage: Usage, limit: int) -> Iterator[Choice]:
        """Yields what a tenant may send. What is full for a batch stays so, as all that is yielded is in `usage`."""
        for batch in line.batches:
            try:
                state = revision_for(self._catalogue, batch)
            except UnreadableBatchError as error:
                self.note_unreadable(batch.id, error)
                continue
            if state is None or usage.room(state) <= 0:
                continue
            for _ in range(self._waiting(session, batch, limit)):
                slots = usage.slots(state, batch, line.max_slots)
                if slots == 0 or usage.room(state) <= 0:
                    break
                revision = state.card.revision
                usage.add(InFlight(batch.id, batch.tenant, revision, ChunkProgress.NOTHING, slots))
                yield Choice(batch.id, state, slots)

    def _lines(self, session: Session) -> list[_Line]:
        has_waiting = exists().where(Shard.batch_id == Batch.id, IS_WAITING_SHARD)
        query = (
            select(Batch, Tenant.weight, Tenant.max_batch_slots)
            .outerjoin(Tenant, Tenant.id == Batch.tenant)
            .where(IS_OPEN_BATCH, Batch.state == BatchState.RUNNING, has_waiting)
            .order_by(Batch.tenant, Batch.rank.desc(), Batch.created, Batch.id)
            .limit(MAX_BATCHES)
        )
        lines: dict[str, _Line] = {}
        for batch, weight, max_slots in session.execute(query):
            if batch.id in self._unreadable:
                continue
            most = self._settings.batch_slots if max_slots is None else max_slots
            line = lines.setdefault(batch.tenant, _Line(batch.tenant, weight or 1, most, []))
            line.batches.append(batch)
        return list(lines.values())

    def _waiting(self, session: Session, batch: Batch, limit: int) -> int:
        of_batch = Shard.batch_id == batch.id, IS_WAITING_SHARD
        return len(session.execute(select(Shard.number).where(*of_batch).limit(limit)).all())


def revision_for(catalogue: Catalogue, batch: Batch) -> RevisionState | None:
    """Returns the revision that draws the next shards of a batch; None if no workers can.

    It is the batch's own. If that has no workers, and the request has not named it, it is another one of the model.
    """
    own = catalogue.fleet.get(batch.revision)
    if own is not None and own.is_live and own.generators:
        return own
    if batch.pinned:
        return None
    card = own.card if own is not None else None
    if card is None:
        return None
    other = catalogue.rebind(card, lambda candidate: fits(batch, card, candidate))
    return other if other is not None and other.is_live and other.generators else None


def fits(batch: Batch, before: ModelCard, card: ModelCard) -> bool:
    """Returns whether another revision can draw the shards of a batch that is bound to one."""
    second_pass = parameters_of(batch).defaults.second_pass
    # Some rows may have tokens of an initial image, which only mean the same with the same VQGAN.
    if not (card.has_same_tokens(before) and card.side == before.side):
        return False
    return (
        second_pass is None
        or second_pass.refine is None
        or (card.refiner_revision is not None and card.trained_upscale == before.trained_upscale)
    )
