"""Applies the stages' events to jobs: the handler of the queue of events.

Events arrive at least once, in any order, and possibly late. A *done* event counts under any lease, whoever has done
the work. A *failed* event counts only under the current lease of the chunk, since a later message may
succeed.
"""

import logging
import re
from collections.abc import Callable, Iterable

from sqlalchemy import select
from sqlalchemy.orm import Session

from smalti.errors import (
    AttemptsExhaustedError,
    InvalidInputError,
    ModelMismatchError,
    RefusedByPolicyError,
    SmaltiError,
)
from smalti.messages import Failed, FailureReason, Message, Progress, Stage, StageDone
from smalti.queue import Delivery
from smalti.services.gateway.database.clock import to_microseconds
from smalti.services.gateway.database.tables import IS_LEASED, Chunk, ChunkProgress, Job, JobState
from smalti.services.gateway.jobs.aside import set_aside
from smalti.services.gateway.jobs.context import GatewayContext
from smalti.services.gateway.jobs.lifecycle import advance, end, lock_open, start, touch
from smalti.services.gateway.jobs.objects import added
from smalti.services.gateway.jobs.reading import UnreadableJobError, is_of_earlier_revision, parameter_of
from smalti.services.gateway.jobs.watchers import WatcherHub
from smalti.services.gateway.policy.content_policy import Subject
from smalti.services.gateway.work.fan_in import FanIn
from smalti.services.gateway.work.progress import ProgressBuffer, renew_lease
from smalti.services.gateway.work.refining import Refining

log = logging.getLogger(__name__)

_FIELD = re.compile(r"(?P<field>[a-z][\w.\[\]]*): (?P<problem>.+)", re.DOTALL)

_PROGRESS = {Stage.GENERATE: ChunkProgress.GENERATED, Stage.DECODE: ChunkProgress.DECODED}


class EventHandler:
    """Handles events; thread-safe."""

    def __init__(
        self,
        context: GatewayContext,
        *,
        fan_in: FanIn,
        refining: Refining,
        progress: ProgressBuffer,
        watchers: WatcherHub,
        of_shards: Callable[[Message], bool] = lambda message: False,
    ) -> None:
        """Creates the handler.

        Args:
            context: shared by the parts of the gateway.
            fan_in: receives the scores of chunks.
            refining: receives the refined pictures.
            progress: receives progress, which may be stored later.
            watchers: receives the rows that the generator has drawn.
            of_shards: applies an event if it is of a shard of a batch; returns whether it is.
        """
        self._context = context
        self._database = context.database
        self._clock = context.clock
        self._fan_in = fan_in
        self._refining = refining
        self._progress = progress
        self._watchers = watchers
        self._of_shards = of_shards

    def handle(self, delivery: Delivery) -> Iterable[Message]:
        """Handles a delivery, as a `smalti.queue.Handler`; no messages follow."""
        self.apply(delivery.message)
        return ()

    def apply(self, message: Message) -> None:
        """Applies an event to its job.

        Raises:
            UnavailableError: the database or the store does not answer; the event must be delivered again.
        """
        if self._of_shards(message):
            return
        try:
            self._apply(message)
        except UnreadableJobError as error:
            # What the event says is stored, or comes again with the next lease.
            set_aside(self._context, message.job, error)

    def _apply(self, message: Message) -> None:
        match message:
            case StageDone(stage=Stage.ENCODE):
                self._encoded(message)
            case StageDone(stage=Stage.RANK, chunk=int(chunk)):
                self._fan_in.ranked(message.job, chunk, message.objects, message.lease)
            case StageDone(stage=Stage.REFINE, chunk=int(chunk)):
                if self._refining.refined(message.job, chunk, message.objects, lease=message.lease):
                    self._fan_in.finish(message.job)
            case StageDone(chunk=int(chunk)) if message.stage in _PROGRESS:
                reached = _PROGRESS[message.stage]
                self._progress.reached(message.job, chunk, reached, message.objects, lease=message.lease)
            case Progress(chunk=int(chunk)):
                self._progress.rows_reached(
                    message.job, chunk, message.of - message.rows, lease=message.lease
                )
                self._watchers.rows_drawn(message)
                if self._context.rows is not None:
                    self._context.rows.tell(message)
            case Failed():
                self._failed(message)
            case _:
                log.error("unexpected event: %s of %s", message.work_key[1], message.work_key[2])

    def _encoded(self, event: StageDone) -> None:
        """Applies the end of encoding: it holds for the prompt and for all chunks of the message."""
        # Before the transaction, since the list may have to be read again.
        refusal = self._refusal(event)
        now = self._clock()
        with self._database.write() as session:
            job = lock_open(session, event.job)
            if job is None or is_of_earlier_revision(job, event.lease):
                return
            job.encodings = added(job.encodings, job.id, event.objects)
            changed = start(job, to_microseconds(now))
            if not job.prompt_encoded:
                job.prompt_encoded = changed = True
            outcome = None
            if job.prompt_reading is None and event.reading is not None:
                job.prompt_reading = event.reading.model_dump(mode="json", by_alias=True)
                changed = True
                if refusal is not None:
                    outcome = end(session, job, JobState.FAILED, now, error=refusal)
            for chunk in self._leased_chunks(session, job, event):
                advance(job, chunk, ChunkProgress.ENCODED)
                renew_lease(chunk, self._context.settings, now)
            if changed:
                touch(job)
        if outcome:
            self._context.events.ended(outcome)
        elif changed:
            self._context.events.changed(event.job)

    def _refusal(self, event: StageDone) -> RefusedByPolicyError | None:
        """Returns why the words must not be drawn that the model takes for the prompt; None if they may."""
        if event.reading is None or not self._context.policy.checks_texts:
            return None
        text = event.reading.effective_prompt
        with self._database.read() as session:
            job = session.get(Job, event.job)
            if job is None or job.prompt_reading is not None or text == parameter_of(job, "prompt", ""):
                return None
        try:
            self._context.policy.check_text(text, Subject.READING)
        except RefusedByPolicyError as error:
            return error
        return None

    def _failed(self, event: Failed) -> None:
        """Ends the job of a failed message, or sends its chunks again."""
        now = self._clock()
        with self._database.write() as session:
            job = lock_open(session, event.job)
            if job is None:
                return
            chunks = self._leased_chunks(session, job, event)
            if not chunks:
                return  # The chunks were sent again since, or are done.
            outcome, lost = None, list[int]()
            match event.reason:
                case FailureReason.CANCELLED:
                    # The marker exists, so no stage works on the job any more, although it is open in the database.
                    outcome = end(session, job, JobState.CANCELLED, now)
                case FailureReason.INVALID | FailureReason.MODEL | FailureReason.POISON:
                    outcome = end(session, job, JobState.FAILED, now, error=_error(event))
                case FailureReason.EXPIRED:
                    # The worker's clock may be fast, so only this one counts.
                    if to_microseconds(now) >= job.expires:
                        outcome = end(session, job, JobState.EXPIRED, now)
                case FailureReason.EXHAUSTED:
                    self._send_later(chunks, event, now)
                case FailureReason.INPUTS:
                    lost = [chunk.number for chunk in chunks]
        if lost:
            self._refining.inputs_lost(event.job, lost, event.detail)
        if outcome:
            log.info("the job ended: %s: %s", event.reason, event.detail, extra={"job": event.job})
            self._context.events.ended(outcome)

    def _send_later(self, chunks: list[Chunk], event: Failed, now: float) -> None:
        """Shortens the leases of chunks that a stage has given up, so that they are sent again after a delay."""
        for chunk in chunks:
            chunk.sent = chunk.begun = True
            chunk.deadline = to_microseconds(now + self._context.settings.retry * 2.0**chunk.attempts)
            chunk.problem = f"{event.stage}: {event.detail}"

    def _leased_chunks(self, session: Session, job: Job, event: StageDone | Failed) -> list[Chunk]:
        """Returns the chunks of an event that still have its lease: one, or all of an encoder's message."""
        query = select(Chunk).where(Chunk.job_id == job.id, IS_LEASED, Chunk.lease == event.lease)
        if event.chunk is not None:
            query = query.where(Chunk.number == event.chunk)
        return list(session.scalars(query.order_by(Chunk.number)))


def _error(event: Failed) -> SmaltiError:
    """Returns the error of a failed job, for its user."""
    if event.reason is FailureReason.MODEL:
        return ModelMismatchError(event.detail)
    if event.reason is FailureReason.INVALID:
        match = _FIELD.fullmatch(event.detail)
        if match is None:
            return InvalidInputError("parameters", event.detail)
        return InvalidInputError(f"parameters.{match['field']}", match["problem"])
    return AttemptsExhaustedError(f"{event.stage}: {event.detail}")
