"""What the stages tell: the handler of the queue of events.

Events come at least once, in any order, and perhaps long after they were sent. A *done* counts whatever lease it has,
since the same work writes the same objects; a failure counts only under the lease that is the chunk's now, since what
was sent after it may succeed.
"""

import logging
import re
from collections.abc import Iterable
from typing import Protocol

from sqlalchemy import select
from sqlalchemy.orm import Session

from smalti.errors import AttemptsExhaustedError, InvalidInputError, ModelMismatchError, SmaltiError
from smalti.messages import Failed, FailureReason, Message, Progress, Stage, StageDone
from smalti.queue import Delivery
from smalti.services.gateway.database.clock import Clock, to_microseconds
from smalti.services.gateway.database.connection import Database
from smalti.services.gateway.database.tables import IS_LEASED, Chunk, Job, Reached, State
from smalti.services.gateway.jobs.lifecycle import begin, end, lock_open, reach
from smalti.services.gateway.jobs.observer import JobObserver
from smalti.services.gateway.settings import GatewaySettings
from smalti.services.gateway.work.fan_in import FanIn
from smalti.services.gateway.work.progress import ProgressBuffer, renew

log = logging.getLogger(__name__)

_FIELD = re.compile(r"(?P<field>[a-z][\w.\[\]]*): (?P<problem>.+)", re.DOTALL)

_REACHED = {Stage.GENERATE: Reached.DRAWN, Stage.DECODE: Reached.DECODED}


class Rows(Protocol):
    """Told of the rows that are drawn, for those who watch; must not block."""

    def drawn(self, progress: Progress) -> None:
        """Rows of a chunk were drawn."""
        ...


class Events:
    """Handles events; many threads may do so."""

    def __init__(
        self,
        database: Database,
        fan_in: FanIn,
        ledger: ProgressBuffer,
        side: int,
        settings: GatewaySettings,
        notices: JobObserver,
        rows: Rows,
        clock: Clock,
    ) -> None:
        """Takes what it works with.

        Args:
            database: where jobs are.
            fan_in: takes the scores of a chunk.
            ledger: told of what may be stored later.
            side: the rows of tiles of a picture.
            settings: for leases.
            notices: told of changes.
            rows: told of rows.
            clock: says what time it is.
        """
        self._database = database
        self._fan_in = fan_in
        self._ledger = ledger
        self._side = side
        self._settings = settings
        self._notices = notices
        self._rows = rows
        self._clock = clock

    def handle(self, delivery: Delivery) -> Iterable[Message]:
        """Handles an event; see `smalti.queue.Handler`. Nothing follows from it in the queues."""
        self.take(delivery.message)
        return ()

    def take(self, message: Message) -> None:
        """Takes an event into account.

        Raises:
            UnavailableError: the database or the store does not answer; the event must come again.
        """
        match message:
            case StageDone(stage=Stage.ENCODE):
                self._encoded(message)
            case StageDone(stage=Stage.RANK, chunk=int(chunk)):
                self._fan_in.ranked(message.job, chunk, message.objects)
            case StageDone(chunk=int(chunk)) if message.stage in _REACHED:
                self._ledger.reached(message.job, chunk, _REACHED[message.stage])
            case Progress(chunk=int(chunk)):
                self._ledger.laid(message.job, chunk, message.rows + self._side - message.of)
                self._rows.drawn(message)
            case Failed():
                self._failed(message)
            case _:
                log.error("an event of no use: %s of %s", message.work[1], message.work[2])

    def _encoded(self, event: StageDone) -> None:
        """The prompt is encoded, and the chunks that were sent with it are on their way."""
        now = self._clock()
        with self._database.write() as session:
            job = lock_open(session, event.job)
            if job is None:
                return
            changed = begin(job, to_microseconds(now))
            if not job.encoded:
                job.encoded = changed = True
            if job.reading is None and event.reading is not None:
                job.reading = event.reading.model_dump(mode="json")
                changed = True
            for chunk in self._under(session, job, event):
                reach(job, chunk, Reached.ENCODED)
                renew(chunk, self._settings, now)
            if changed:
                job.version += 1
        if changed:
            self._notices.changed(event.job)

    def _failed(self, event: Failed) -> None:
        """Work has failed: the job fails with it, or the work is sent again."""
        now = self._clock()
        with self._database.write() as session:
            job = lock_open(session, event.job)
            if job is None:
                return
            chunks = self._under(session, job, event)
            if not chunks:
                return  # Since then it was sent again, or another one has done it.
            ending = None
            match event.reason:
                case FailureReason.CANCELLED:
                    # The marker is there, so no stage will work for it: whoever wrote it could not say so here.
                    ending = end(session, job, State.CANCELLED, now)
                case FailureReason.INVALID | FailureReason.MODEL | FailureReason.POISON:
                    ending = end(session, job, State.FAILED, now, error=_error(event))
                case FailureReason.EXPIRED:
                    # By this clock; by another one it may be early.
                    if to_microseconds(now) >= job.expires:
                        ending = end(session, job, State.EXPIRED, now)
                case FailureReason.EXHAUSTED:
                    self._send_later(chunks, event, now)
        if ending:
            log.info("the job ends: %s: %s", event.reason, event.detail, extra={"job": event.job})
            self._notices.ended(ending)

    def _send_later(self, chunks: list[Chunk], event: Failed, now: float) -> None:
        """Lets leases run out soon: what a stage has given up, for the store was away perhaps, is sent again."""
        for chunk in chunks:
            chunk.sent = chunk.heard = True
            chunk.deadline = to_microseconds(now + self._settings.retry * 2.0**chunk.attempts)
            chunk.problem = f"{event.stage}: {event.detail}"

    def _under(self, session: Session, job: Job, event: StageDone | Failed) -> list[Chunk]:
        """Returns the chunks that an event speaks of, if its lease is still theirs: one, or all of an encoding."""
        query = select(Chunk).where(Chunk.job_id == job.id, IS_LEASED, Chunk.lease == event.lease)
        if event.chunk is not None:
            query = query.where(Chunk.number == event.chunk)
        return list(session.scalars(query.order_by(Chunk.number)))


def _error(event: Failed) -> SmaltiError:
    """Returns why a job fails, for its user."""
    if event.reason is FailureReason.MODEL:
        return ModelMismatchError(event.detail)
    if event.reason is FailureReason.INVALID:
        match = _FIELD.fullmatch(event.detail)
        if match is None:
            return InvalidInputError("parameters", event.detail)
        return InvalidInputError(f"parameters.{match['field']}", match["problem"])
    return AttemptsExhaustedError(f"{event.stage}: {event.detail}")
