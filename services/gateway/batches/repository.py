"""The repository of batches: accepts, reads, lists, pauses, cancels and deletes them."""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy import JSON, func, select, type_coerce
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from smalti.errors import (
    BatchNotFoundError,
    InvalidInputError,
    QuotaExceededError,
    RequestIdReusedError,
    StoredFileNotFoundError,
)
from smalti.service import failpoints
from smalti.services.gateway.batches.estimating import Estimate, Estimates
from smalti.services.gateway.batches.lifecycle import end, lock, pause, resume, stop, touch
from smalti.services.gateway.batches.signals import BatchOutcome, BatchSignals
from smalti.services.gateway.batches.spec import BatchSpec
from smalti.services.gateway.database import schema
from smalti.services.gateway.database.clock import to_microseconds
from smalti.services.gateway.database.tables import (
    DEFAULT_TENANT,
    IS_LEASED_SHARD,
    IS_OPEN_BATCH,
    OPEN_BATCH_STATES,
    Batch,
    BatchState,
    FileState,
    PageCursor,
    Shard,
    StoredFile,
    Tenant,
    page_of,
)
from smalti.services.gateway.jobs.context import GatewayContext
from smalti.services.gateway.jobs.tenants import UNLIMITED, own

DEFAULT_RETENTION_SECONDS: Final = 30 * 24 * 3600.0
RETRY_SECONDS: Final = 60.0
"""When a tenant with too many open batches may try again."""

Change = Callable[[Session, Batch], BatchOutcome | None]


@dataclass(frozen=True, kw_only=True)
class BatchSnapshot:
    """A batch at one point in time."""

    batch: Batch
    """Detached from its transaction; read-only."""
    in_flight: int = 0
    """Shards that are in the queues."""
    generated: int = 0
    """Candidates that are generated, also of shards that are not done."""
    estimate: Estimate | None = None
    """What it costs; None before it is planned."""
    now: int = 0
    """The time, in microseconds."""


@dataclass(frozen=True, kw_only=True)
class BatchFilter:
    """A filter for the batches to list; empty fields match every batch."""

    states: tuple[BatchState, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)
    tenant: str | None = None
    """Whose batches; None for those of all tenants."""


class BatchRepository:
    """The batches in the database; thread-safe, and every call blocks.

    Batches of other tenants are not found; the tenant None finds those of all.
    """

    def __init__(self, context: GatewayContext, signals: BatchSignals) -> None:
        self._database = context.database
        self._settings = context.settings
        self._clock = context.clock
        self._signals = signals

    def find_request(
        self, request_id: str, request_hash: str, *, tenant: str = DEFAULT_TENANT
    ) -> BatchSnapshot | None:
        """Returns the batch that an earlier request with this request_id has created; None if there is none.

        Raises:
            RequestIdReusedError: the earlier request had other content.
        """
        with self._database.read() as session:
            query = select(Batch).where(Batch.tenant == tenant, Batch.request_id == request_id)
            batch = session.scalars(query).one_or_none()
            if batch is None:
                return None
            if batch.request_hash != request_hash:
                raise RequestIdReusedError(
                    batch.id,
                    f"the request_id was used for another request, batch {batch.id}; use a new request_id",
                )
            return self._snapshots(session, [batch])[0]

    def check_input(self, key: str, tenant: str) -> None:
        """Raises `StoredFileNotFoundError` if an object below "inputs/" is in the folder of another tenant."""
        owner = key.split("/")[1]
        if tenant != DEFAULT_TENANT or key.count("/") < 2 or owner == tenant:
            return
        with self._database.read() as session:
            if session.get(Tenant, owner) is not None:
                raise StoredFileNotFoundError(key, f"there is no object {key} in the store")

    def create(self, spec: BatchSpec) -> BatchSnapshot:
        """Accepts a batch. Once this returns, it is stored and will end, whatever fails.

        Raises:
            RequestIdReusedError: the request_id belongs to another request of the tenant.
            QuotaExceededError: the tenant has too many open batches.
            InvalidInputError: there is no such tenant, or the batch is to be kept for too long.
        """
        batch = self._new(spec)
        try:
            with self._database.write() as session:
                batch.retention = to_microseconds(self._check_limits(session, spec))
                self._check_file(session, batch)
                # Gateways that know nothing of batches would never end it.
                schema.require(session, schema.BATCHES)
                session.add(batch)
        except IntegrityError:
            found = self.find_request(spec.request_id or "", spec.request_hash or "", tenant=spec.tenant)
            if found is None:
                raise
            return found
        failpoints.reach("gateway.after-batch", job=batch.id, batch=batch.name)
        self._signals.to_plan.set()
        return BatchSnapshot(batch=batch, now=to_microseconds(self._clock()))

    def get(self, batch_id: str, *, tenant: str | None = None) -> BatchSnapshot:
        """Returns a batch; raises `BatchNotFoundError`."""
        with self._database.read() as session:
            batch = _owned(session.get(Batch, batch_id), batch_id, tenant)
            return self._snapshots(session, [batch])[0]

    def page(self, matching: BatchFilter, *, after: PageCursor | None, limit: int) -> list[BatchSnapshot]:
        """Returns a page of batches, the newest first.

        Args:
            matching: which batches to list.
            after: the last batch of the previous page; None for the first page.
            limit: maximum number of batches.
        """
        query = page_of(select(Batch).where(Batch.removed.is_(False)), Batch, after=after, limit=limit)
        if matching.tenant is not None:
            query = query.where(Batch.tenant == matching.tenant)
        if matching.states:
            query = query.where(Batch.state.in_(matching.states))
        for key, value in matching.labels.items():
            query = query.where(type_coerce(Batch.labels, JSON)[key].as_string() == value)
        with self._database.read() as session:
            return self._snapshots(session, session.scalars(query).all())

    def pause(self, batch_id: str, *, tenant: str | None = None) -> BatchSnapshot:
        """Lets no further shards of a batch begin.

        Raises:
            BatchNotFoundError: there is no such batch.
            WrongStateError: it has ended.
        """
        return self._change(batch_id, tenant, lambda session, batch: pause(batch))

    def resume(self, batch_id: str, *, tenant: str | None = None) -> BatchSnapshot:
        """Goes on with a batch that was paused; raises as `pause` does."""
        snapshot = self._change(batch_id, tenant, lambda session, batch: resume(batch))
        self._signals.to_send.set()
        return snapshot

    def cancel(self, batch_id: str, *, tenant: str | None = None) -> BatchSnapshot:
        """Ends a batch; one that has ended does not change. Raises `BatchNotFoundError`."""

        def cancel(session: Session, batch: Batch) -> BatchOutcome | None:
            if batch.state not in OPEN_BATCH_STATES:
                return None
            return stop(session, batch, BatchState.CANCELLED, self._clock())

        snapshot = self._change(batch_id, tenant, cancel)
        self._signals.to_finish.set()
        self._signals.to_clean.set()
        return snapshot

    def delete(self, batch_id: str, *, tenant: str | None = None) -> None:
        """Deletes a batch and its files; one that has not ended is cancelled first. Raises `BatchNotFoundError`."""

        def remove(session: Session, batch: Batch) -> BatchOutcome | None:
            outcome = None
            if batch.state in OPEN_BATCH_STATES:
                outcome = end(session, batch, BatchState.CANCELLED, self._clock())
            batch.removed, batch.request_id = True, None
            batch.clean_at, batch.delete_at = None, to_microseconds(self._clock())
            touch(batch)
            return outcome

        self._change(batch_id, tenant, remove)
        self._signals.to_clean.set()

    def versions(self, batch_ids: Sequence[str]) -> dict[str, int]:
        """Returns the versions by batch; batches that do not exist are left out."""
        query = select(Batch.id, Batch.version).where(Batch.id.in_(batch_ids), Batch.removed.is_(False))
        with self._database.read() as session:
            return {row.id: row.version for row in session.execute(query)}

    def _change(
        self, batch_id: str, tenant: str | None, change: Change | Callable[..., None]
    ) -> BatchSnapshot:
        with self._database.write() as session:
            batch = _owned(lock(session, batch_id), batch_id, tenant)
            before = batch.version
            outcome = change(session, batch)
            session.flush()
            snapshot = self._snapshots(session, [batch])[0]
            is_changed = batch.version != before
        if isinstance(outcome, BatchOutcome):
            self._signals.ended(outcome)
        if is_changed:
            self._signals.changed(batch_id)
        return snapshot

    def _check_file(self, session: Session, batch: Batch) -> None:
        """Raises `StoredFileNotFoundError` if the input has been deleted; from now on it cannot be."""
        if batch.input_file is None:
            return
        query = select(StoredFile.state).where(StoredFile.id == batch.input_file).with_for_update()
        if session.scalar(query) is not FileState.READY:
            raise StoredFileNotFoundError(batch.input_file)

    def _check_limits(self, session: Session, spec: BatchSpec) -> float:
        """Checks the limits of a tenant; returns for how many seconds the batch is kept."""
        query = select(Tenant).where(Tenant.id == spec.tenant).with_for_update()
        tenant = session.scalars(query).one_or_none()
        if tenant is None:
            raise InvalidInputError("tenant", f"is not known: {spec.tenant!r}; create it first")
        longest = own(tenant.max_retention, UNLIMITED)
        if spec.retention is not None and spec.retention > longest:
            raise InvalidInputError(
                "retention",
                f"must be at most {longest} s for tenant {tenant.id}, got {spec.retention:g} s",
            )
        open_batches = session.scalar(
            select(func.count()).select_from(Batch).where(IS_OPEN_BATCH, Batch.tenant == spec.tenant)
        )
        limit = self._settings.open_batches
        if (open_batches or 0) >= limit:
            raise QuotaExceededError(
                f"tenant {spec.tenant} has {open_batches} batches that have not ended, and may have {limit}; cancel "
                f"one, or try again in {RETRY_SECONDS:.0f} s",
                RETRY_SECONDS,
                quota="open_batches",
                limit=limit,
            )
        return min(DEFAULT_RETENTION_SECONDS, longest) if spec.retention is None else spec.retention

    def _new(self, spec: BatchSpec) -> Batch:
        now = self._clock()
        return Batch(
            id=str(uuid.uuid4()),
            version=1,
            state=BatchState.PLANNING,
            tenant=spec.tenant,
            request_id=spec.request_id,
            request_hash=spec.request_hash,
            name=spec.name,
            labels=dict(spec.labels),
            parameters=spec.parameters.model_dump(mode="json", exclude_none=True),
            model=spec.card.name,
            revision=spec.card.revision,
            pinned=spec.pinned,
            input_file=spec.parameters.input.file_id or None,
            rank=spec.rank,
            slots=spec.slots,
            validate_only=spec.validate_only,
            created=to_microseconds(now),
            expires=to_microseconds(now + spec.time_limit),
            removed=False,
            webhook=spec.webhook.model_dump(exclude_none=True) if spec.webhook else None,
            trace=spec.trace.model_dump() if spec.trace else None,
            **dict.fromkeys(_COUNTERS, 0),
        )

    def _snapshots(self, session: Session, batches: Sequence[Batch]) -> list[BatchSnapshot]:
        ids = [batch.id for batch in batches]
        query = (
            select(Shard.batch_id, func.count(), func.sum(Shard.generated))
            .where(Shard.batch_id.in_(ids), IS_LEASED_SHARD)
            .group_by(Shard.batch_id)
        )
        flying = {each: (int(count), int(made or 0)) for each, count, made in session.execute(query)}
        now, estimates = to_microseconds(self._clock()), Estimates(session)
        found = []
        for batch in batches:
            count, generated = flying.get(batch.id, (0, 0))
            found.append(
                BatchSnapshot(
                    batch=batch,
                    in_flight=count,
                    generated=batch.candidates_generated + generated,
                    estimate=estimates.of(batch) if batch.planned is not None else None,
                    now=now,
                )
            )
        return found


_COUNTERS: Final = (
    *("prompts", "blank", "invalid", "drawn", "failed", "candidates", "candidates_generated"),
    *("pictures_planned", "pictures", "size", "shards", "shards_ended", "fence"),
)


def _owned(batch: Batch | None, batch_id: str, tenant: str | None) -> Batch:
    if batch is None or batch.removed or tenant not in (None, batch.tenant):
        raise BatchNotFoundError(batch_id)
    return batch
