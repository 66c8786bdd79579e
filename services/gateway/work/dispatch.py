"""Sends chunks to the queues, and sends them again when their leases expire.

A chunk is leased, and the lease is committed, before its message is sent. Whatever fails in between, the chunk is sent
again when the lease expires. A message that the broker has not confirmed is not an attempt.
"""

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

from sqlalchemy import select, update

from smalti.errors import AttemptsExhaustedError, BrokerUnavailableError
from smalti.messages import EncodeTask, RefineTask
from smalti.service import failpoints
from smalti.services.gateway.database.clock import to_microseconds
from smalti.services.gateway.database.tables import (
    IS_LEASED,
    IS_WAITING,
    Chunk,
    ChunkState,
    Job,
    JobState,
)
from smalti.services.gateway.jobs.aside import apart, take_back
from smalti.services.gateway.jobs.context import GatewayContext
from smalti.services.gateway.jobs.lifecycle import end, lock_open
from smalti.services.gateway.jobs.messages import chunk_numbers, tasks_of
from smalti.services.gateway.jobs.objects import has_crashed_workers, store_is_writable
from smalti.services.gateway.jobs.observer import JobObserver
from smalti.services.gateway.models import revision_of
from smalti.services.gateway.work.picking import Picker, Run
from smalti.services.gateway.work.progress import ProgressBuffer
from smalti.services.gateway.work.windows import Windows

log = logging.getLogger(__name__)

SENDING_SECONDS: Final = 15.0
"""Length of the lease until the broker confirms the message; longer than the broker's timeout."""
BATCH_SIZE: Final = 256
"""Number of chunks or jobs that one query reads."""
MAX_LISTINGS: Final = 8
"""Maximum number of listings of the store at the same time."""


class _Arrivals(JobObserver):
    """Knows whether jobs have come."""

    def __init__(self) -> None:
        self.come = threading.Event()

    def created(self, job_id: str) -> None:
        self.come.set()


class Dispatcher:
    """Sends chunks; one thread per gateway.

    A chunk without events is sent again, since its message may be lost. That counts as an attempt only if a worker is
    known to have begun a step and not to have finished it, and no worker is known to have crashed over the job: workers
    find out by themselves which job they crash over. Otherwise there may be no workers, or long queues, and the job's
    time limit ends it.
    """

    def __init__(self, context: GatewayContext, progress: ProgressBuffer) -> None:
        """Creates the dispatcher.

        Args:
            context: shared by the parts of the gateway.
            progress: notified of chunks whose messages the broker has confirmed.
        """
        self._context = context
        self._database = context.database
        self._publisher = context.publisher
        self._store = context.store
        self._settings = context.settings
        self._events = context.events
        self._clock = context.clock
        self._progress = progress
        self._picker = Picker(context.settings, context.clock)
        self._windows = Windows(context)
        self._arrivals = _Arrivals()
        context.events.subscribe(self._arrivals)
        self._elapsed = context.elapsed
        self._looked: float | None = None

    def reclaim(self) -> None:
        """Ends the leases of chunks that a previous process was sending when it died. Call it before sending.

        It does so on SQLite alone, where no other gateway may be sending them. Elsewhere the leases expire soon.
        """
        if not self._database.is_sqlite:
            return
        with self._database.write() as session:
            now = to_microseconds(self._clock())
            session.execute(update(Chunk).where(IS_LEASED, Chunk.sent.is_(False)).values(deadline=now))

    def send_waiting(self) -> int:
        """Sends as many waiting chunks as the window allows; returns how many.

        Raises:
            BrokerUnavailableError: the broker does not answer; the chunks are sent later.
            DatabaseUnavailableError: the database does not answer.
        """
        sent = 0
        more = True
        while more:
            self._arrivals.come.clear()
            picked, more = self._pick()
            before = sent
            for number, run in enumerate(picked):
                if number and self._arrivals.come.is_set():
                    # What has come meanwhile may be another tenant's, which does not wait for all that was picked.
                    self._picker.give_back(picked[number:])
                    more = True
                    break
                with apart(self._context, run.job_id):
                    sent += self._send(run.job_id, run.numbers)
            if sent == before:
                break  # No chunks are left, or other gateways have sent them.
        return sent

    def send_again(self) -> int:
        """Resends chunks whose leases have expired; fails a job when one of its chunks has no attempts left.

        Returns:
            The number of chunks that were sent.

        Raises:
            BrokerUnavailableError: the broker does not answer; the chunks are sent later.
            DatabaseUnavailableError: the database does not answer.
        """
        now = to_microseconds(self._clock())
        self._forgive_own_gap()
        with self._database.read() as session:
            late = session.execute(
                select(Chunk.job_id, Chunk.sent, Chunk.begun & Chunk.problem.is_(None))
                .where(IS_LEASED, Chunk.deadline <= now)
                .distinct()
                .limit(BATCH_SIZE)
            ).all()
        writable = any(sent for _, sent, _ in late) and store_is_writable(self._store, "chunks")
        # Asked only where it decides whether this is an attempt: for each job the store makes a listing.
        unclear = {job_id for job_id, sent, is_unclear in late if sent and is_unclear} if writable else set()
        crashed = self._crashed_over(sorted(unclear))
        sent = 0
        for job_id in {job_id for job_id, _, _ in late}:
            with apart(self._context, job_id):
                sent += self._send_lost(job_id, resend=writable, is_attempt=job_id not in crashed)
        self._looked = self._elapsed()
        return sent

    def _forgive_own_gap(self) -> None:
        """Extends expired leases if this gateway has not looked for long: at the start, or after it was suspended.

        The events that would have renewed them may wait for it in the queue.
        """
        half = self._settings.lease / 2
        if self._looked is not None and self._elapsed() - self._looked <= half:
            return
        now = self._clock()
        with self._database.write() as session:
            session.execute(
                update(Chunk)
                .where(IS_LEASED, Chunk.sent.is_(True), Chunk.deadline <= to_microseconds(now))
                .values(deadline=to_microseconds(now + half))
            )
        self._looked = self._elapsed()

    def _pick(self) -> tuple[list[Run], bool]:
        """Returns the next chunks, and whether there may be more that fit into the windows."""
        with self._database.read() as session:
            return self._picker.pick(session, self._windows, limit=BATCH_SIZE)

    def _send(self, job_id: str, numbers: list[int]) -> int:
        with self._database.write() as session:
            job = lock_open(session, job_id, skip_locked=True)
            if job is None:
                return 0
            chunks = session.scalars(
                select(Chunk)
                .where(Chunk.job_id == job_id, Chunk.number.in_(numbers), IS_WAITING)
                .order_by(Chunk.number)
            ).all()
            tasks = self._lease(job, chunks)
        return self._publish(job_id, tasks)

    def _send_lost(self, job_id: str, *, resend: bool, is_attempt: bool) -> int:
        """Resends the chunks of a job whose leases have expired.

        Args:
            job_id: the job.
            resend: whether to resend what the broker has confirmed; not while the store is unavailable.
            is_attempt: whether this counts as an attempt at chunks that a worker has begun.
        """
        now = self._clock()
        with self._database.write() as session:
            job = lock_open(session, job_id, skip_locked=True)
            if job is None:
                return 0
            chunks = session.scalars(
                select(Chunk)
                .where(Chunk.job_id == job_id, IS_LEASED, Chunk.deadline <= to_microseconds(now))
                .order_by(Chunk.number)
            ).all()
            if not self._may_send(job):
                # They would only fill queues that nobody reads. They wait until its workers are back.
                for chunk in chunks:
                    chunk.state, chunk.deadline = ChunkState.WAITING, None
                return 0
            lost = [chunk for chunk in chunks if chunk.sent]
            if lost and not resend:
                for chunk in lost:
                    chunk.deadline = to_microseconds(now + self._settings.retry)
                chunks, lost = [chunk for chunk in chunks if not chunk.sent], []
            for chunk in lost:
                chunk.losses += 1
                # What a stage has given up has a problem, and is its own fault.
                chunk.attempts += chunk.begun and (is_attempt or chunk.problem is not None)
            outcome = None
            given_up = [chunk for chunk in lost if chunk.attempts >= self._settings.attempts]
            if given_up:
                cause = next(
                    (chunk.problem for chunk in given_up if chunk.problem), "its worker stopped responding"
                )
                problem = f"chunk {given_up[0].number} failed {given_up[0].attempts} times: {cause}"
                outcome = end(session, job, JobState.FAILED, now, error=AttemptsExhaustedError(problem))
            tasks = [] if given_up else self._lease(job, chunks)
        if outcome:
            self._events.ended(outcome)
        elif lost:
            self._events.lost(len(lost))
            log.warning("the leases of %d chunks expired; resending them", len(lost), extra={"job": job_id})
        return self._publish(job_id, tasks)

    def _may_send(self, job: Job) -> bool:
        catalogue = self._context.catalogue
        state = catalogue.fleet.get(revision_of(job))
        return state is None or catalogue.may_send(state)

    def _lease(self, job: Job, chunks: Sequence[Chunk]) -> list[EncodeTask | RefineTask]:
        """Leases chunks of a locked job; returns their messages."""
        if not chunks:
            return []
        job.lease += 1
        deadline = to_microseconds(self._clock() + SENDING_SECONDS)
        for chunk in chunks:
            chunk.state = ChunkState.LEASED
            chunk.lease = job.lease
            chunk.owner = self._database.id
            chunk.deadline = deadline
            chunk.sent = chunk.begun = False
            chunk.problem = None  # It was the last attempt's, and this is another.
        catalogue = self._context.catalogue
        routes = catalogue.fleet.routes(revision_of(job))
        tasks = list(tasks_of(job, chunks, version=catalogue.write, routes=routes))
        take_back(job)
        return tasks

    def _publish(self, job_id: str, tasks: Sequence[EncodeTask | RefineTask]) -> int:
        """Sends messages and returns the number of chunks sent; chunks that cannot be sent are due at once."""
        sent: list[int] = []
        try:
            for task in tasks:
                failpoints.reach("gateway.after-lease", job=job_id, prompt=task.prompt)
                self._publisher.publish(task)
                failpoints.reach("gateway.after-publish", job=job_id, prompt=task.prompt)
                sent += chunk_numbers(task)
        except BrokerUnavailableError:
            unsent = [number for task in tasks for number in chunk_numbers(task) if number not in sent]
            with self._database.write() as session:
                session.execute(
                    update(Chunk)
                    .where(
                        Chunk.job_id == job_id,
                        Chunk.number.in_(unsent),
                        Chunk.lease == tasks[0].lease,
                        IS_LEASED,
                    )
                    .values(deadline=to_microseconds(self._clock()))
                )
            raise
        finally:
            self._progress.sent(job_id, sent)
        return len(sent)

    def _crashed_over(self, job_ids: Sequence[str]) -> set[str]:
        """Returns the jobs over which workers have crashed, perhaps because of another one."""
        if not job_ids:
            return set()
        with ThreadPoolExecutor(min(MAX_LISTINGS, len(job_ids)), thread_name_prefix="crashes") as threads:
            found = threads.map(partial(has_crashed_workers, self._store), job_ids)
            return {job_id for job_id, crashed in zip(job_ids, found, strict=True) if crashed}
