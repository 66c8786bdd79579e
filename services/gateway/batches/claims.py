"""Claims of batches: one gateway at a time plans or finishes a batch.

A claim has a fencing number, which grows with each claim. What a gateway stores under an earlier claim does not count:
it may have been suspended while another one went on.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy import ColumnElement, or_, select, update
from sqlalchemy.orm import Session

from smalti.errors import SmaltiError, UnavailableError
from smalti.services.gateway.batches.lifecycle import end
from smalti.services.gateway.batches.signals import BatchSignals
from smalti.services.gateway.batches.spec import UnreadableBatchError
from smalti.services.gateway.database.clock import to_microseconds
from smalti.services.gateway.database.tables import IS_OPEN_BATCH, Batch, BatchState
from smalti.services.gateway.jobs.context import GatewayContext

log = logging.getLogger(__name__)

CLAIM_SECONDS: Final = 30.0
"""Time for which a batch belongs to the gateway that has claimed it, unless it says again that it is there."""
RENEW_SECONDS: Final = 5.0


class ClaimLostError(Exception):
    """Another gateway has the batch now, or it was cancelled; what was not stored does not count."""


@dataclass(frozen=True)
class Claim:
    """A batch that this gateway works on."""

    batch_id: str
    fence: int
    lost: threading.Event = field(default_factory=threading.Event, compare=False)
    """Set when it is known that the claim does not hold any more."""

    def check(self) -> None:
        """Raises `ClaimLostError` if the claim is known to be lost."""
        if self.lost.is_set():
            raise ClaimLostError(f"batch {self.batch_id} is not claimed any more")

    def lock(self, session: Session) -> Batch:
        """Locks the batch; raises `ClaimLostError` if the claim does not hold any more."""
        query = select(Batch).where(Batch.id == self.batch_id, Batch.fence == self.fence, IS_OPEN_BATCH)
        batch = session.scalars(query.with_for_update()).one_or_none()
        if batch is None:
            self.lost.set()
            raise ClaimLostError(f"batch {self.batch_id} is not claimed any more")
        return batch


class Claims:
    """Claims batches for this gateway; thread-safe."""

    def __init__(self, context: GatewayContext, signals: BatchSignals) -> None:
        self._context = context
        self._signals = signals
        self._lock = threading.Lock()
        self._own: set[str] = set()
        """The batches that threads of this gateway work on."""
        self._unreadable: set[str] = set()
        """Batches that this version of the gateway cannot read, which another one plans and finishes."""

    def work(self, do: Callable[[Claim], None], *which: ColumnElement[bool]) -> bool:
        """Claims an open batch, and works on it; the batch fails if that cannot be done.

        Args:
            do: the work.
            which: conditions, as in `next`.

        Returns:
            Whether there was a batch that was free.

        Raises:
            UnavailableError: the database, the store or the disk cannot be used; it is done later.
        """
        with self.next(*which) as claim:
            if claim is None:
                return False
            try:
                self._work(do, claim)
            except ClaimLostError as error:
                log.info("work on a batch ends here: %s", error)
        return True

    @contextmanager
    def next(self, *which: ColumnElement[bool]) -> Iterator[Claim | None]:
        """Claims an open batch, the oldest first, while the block runs, and keeps the claim alive in a thread.

        A batch whose block has raised `UnavailableError` comes after all others the next time, so that it cannot hold
        them up. One whose block has raised `UnreadableBatchError` is left to other gateways; that is not raised again.

        Args:
            which: conditions.

        Yields:
            The claim; None if there is no batch that is free.

        Raises:
            DatabaseUnavailableError: the database does not answer.
        """
        claim = self._claim(which)
        if claim is None:
            yield None
            return
        stopped = threading.Event()
        keeper = threading.Thread(target=self._keep, args=(claim, stopped), name="claim", daemon=True)
        keeper.start()
        free_since: int | None = None
        try:
            yield claim
        except UnreadableBatchError as error:
            log.error("a batch is left to other gateways: %s", error, extra={"batch": claim.batch_id})
            with self._lock:
                self._unreadable.add(claim.batch_id)
        except UnavailableError:
            free_since = to_microseconds(self._context.clock())
            raise
        finally:
            stopped.set()
            keeper.join()
            with self._lock:
                self._own.discard(claim.batch_id)
            self._release(claim, free_since)

    def _work(self, do: Callable[[Claim], None], claim: Claim) -> None:
        try:
            do(claim)
        except (ClaimLostError, UnavailableError, UnreadableBatchError):
            raise
        except Exception as error:
            # Errors of the system have a number; Pillow's, which are of the same class, have none.
            if isinstance(error, OSError) and error.errno is not None:
                problem = f"the folder for temporary files cannot be used: {error}"
                raise UnavailableError(problem) from error
            # It would fail again, and the other batches wait.
            if not isinstance(error, SmaltiError):
                log.exception("a batch cannot be planned or finished", extra={"batch": claim.batch_id})
            self._fail(claim, error)

    def _fail(self, claim: Claim, error: Exception) -> None:
        with self._context.database.write() as session:
            batch = claim.lock(session)
            outcome = end(session, batch, BatchState.FAILED, self._context.clock(), error=error)
        log.info("batch %s has failed: %s", claim.batch_id, error)
        self._signals.tell_end(outcome)

    def _claim(self, which: Sequence[ColumnElement[bool]]) -> Claim | None:
        database, now = self._context.database, self._context.clock()
        with self._lock:
            not_these = self._own | self._unreadable
        is_free = or_(Batch.owned_until.is_(None), Batch.owned_until <= to_microseconds(now))
        # What is planned is open, as the index knows it.
        query = select(Batch).where(IS_OPEN_BATCH, is_free, Batch.id.not_in(not_these), *which)
        query = query.order_by(Batch.owned_until.nulls_first(), Batch.created, Batch.id).limit(1)
        with database.read() as session:
            if session.scalar(query.with_only_columns(Batch.id)) is None:
                return None
        with database.write() as session:
            batch = session.scalars(query.with_for_update(skip_locked=True)).one_or_none()
            if batch is None:
                return None
            batch.fence += 1
            batch.owner = database.id
            batch.owned_until = to_microseconds(now + CLAIM_SECONDS)
            claim = Claim(batch.id, batch.fence)
        with self._lock:
            self._own.add(claim.batch_id)
        return claim

    def _keep(self, claim: Claim, stopped: threading.Event) -> None:
        while not stopped.wait(RENEW_SECONDS):
            until = to_microseconds(self._context.clock() + CLAIM_SECONDS)
            try:
                if not self._set(claim, owned_until=until):
                    claim.lost.set()
                    return
            except UnavailableError as error:
                log.warning("the claim could not be renewed: %s", error, extra={"batch": claim.batch_id})

    def _release(self, claim: Claim, free_since: int | None) -> None:
        try:
            self._set(claim, owned_until=free_since, owner=None)
        except UnavailableError as error:
            log.warning("the claim ends later: %s", error, extra={"batch": claim.batch_id})

    def _set(self, claim: Claim, **values: int | None) -> bool:
        with self._context.database.write() as session:
            held = update(Batch).where(Batch.id == claim.batch_id, Batch.fence == claim.fence, IS_OPEN_BATCH)
            return bool(session.execute(held.values(**values)).rowcount)  # type: ignore[attr-defined]
