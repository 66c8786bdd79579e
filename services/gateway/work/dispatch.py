"""Sends chunks to the queues: those whose turn it is, and again those of which nothing was heard.

A chunk is noted as sent, and committed, before it is sent. So whatever happens in between, it is sent again when its
lease runs out; and what the broker has not confirmed was no attempt.
"""

import logging
from collections.abc import Sequence
from typing import Final

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from smalti.errors import AttemptsExhaustedError, BrokerUnavailableError, StoreUnavailableError
from smalti.messages import EncodeTask
from smalti.parameters import Priority
from smalti.queue import Publisher
from smalti.queue.order import Turns
from smalti.service import failpoints
from smalti.services.gateway.database.clock import Clock, to_microseconds
from smalti.services.gateway.database.connection import Database
from smalti.services.gateway.database.tables import (
    IS_LEASED,
    IS_WAITING,
    PRIORITY_NUMBERS,
    Chunk,
    ChunkState,
    Job,
    State,
)
from smalti.services.gateway.jobs.lifecycle import end, lock_open
from smalti.services.gateway.jobs.messages import encode_tasks
from smalti.services.gateway.jobs.observer import JobObserver
from smalti.services.gateway.settings import GatewaySettings
from smalti.services.gateway.work.progress import ProgressBuffer
from smalti.storage import ObjectStore

log = logging.getLogger(__name__)

SENDING_SECONDS: Final = 15.0
"""The lease of what is being sent; longer than the broker may take to confirm it."""
MAX_AT_ONCE: Final = 256
"""Chunks, or jobs, that are looked at in one go."""


class Dispatcher:
    """Sends what is to be sent; one thread uses it.

    A chunk of which nothing was heard is sent again, for a message may be lost. That counts as an attempt only if it
    was begun: where it was not, there may be no workers, or long queues, and the job's time limit ends it.
    """

    def __init__(
        self,
        database: Database,
        outlet: Publisher,
        store: ObjectStore,
        settings: GatewaySettings,
        ledger: ProgressBuffer,
        notices: JobObserver,
        clock: Clock,
    ) -> None:
        """Takes what it works with.

        Args:
            database: where chunks are.
            outlet: where they go.
            store: where it does not answer, chunks are not blamed for being late.
            settings: window, leases, attempts.
            ledger: told of what was sent.
            notices: told of jobs that fail, and of chunks that are lost.
            clock: says what time it is.
        """
        self._database = database
        self._outlet = outlet
        self._store = store
        self._settings = settings
        self._ledger = ledger
        self._notices = notices
        self._clock = clock
        self._turns = Turns()

    def reclaim(self) -> None:
        """Lets what an earlier gateway was sending when it died be sent at once; called before anything is sent.

        Only where no other gateway may be sending it: on SQLite. Otherwise its lease runs out soon.
        """
        if not self._database.is_sqlite:
            return
        with self._database.write() as session:
            now = to_microseconds(self._clock())
            session.execute(update(Chunk).where(IS_LEASED, Chunk.sent.is_(False)).values(deadline=now))

    def send_waiting(self) -> int:
        """Sends as many waiting chunks as there is room for; returns how many.

        Raises:
            BrokerUnavailableError: the broker does not take them; they are sent later.
            DatabaseUnavailableError: the database does not answer.
        """
        sent = 0
        more = True
        while more:
            picked, more = self._pick()
            before = sent
            for job_id, numbers in picked:
                sent += self._send(job_id, numbers)
            if sent == before:
                break  # There are none, or other gateways have sent them.
        return sent

    def send_again(self) -> int:
        """Sends again what has lost its lease; a job fails whose chunk was sent in vain too often.

        Returns:
            How many chunks were sent.

        Raises:
            BrokerUnavailableError: the broker does not take them; they are sent later.
            DatabaseUnavailableError: the database does not answer.
        """
        now = to_microseconds(self._clock())
        with self._database.read() as session:
            late = session.execute(
                select(Chunk.job_id, Chunk.sent)
                .where(IS_LEASED, Chunk.deadline <= now)
                .distinct()
                .limit(MAX_AT_ONCE)
            ).all()
        blamed = any(sent for _, sent in late) and self._store_answers()
        return sum(self._send_lost(job_id, blamed=blamed) for job_id in {job_id for job_id, _ in late})

    def _pick(self) -> tuple[list[tuple[str, list[int]]], bool]:
        """Returns the chunks whose turn it is, by jobs, and whether there may be more that there is room for.

        Interactive ones come first, and at every eighth turn one of the batches.
        """
        with self._database.read() as session:
            on_the_way = session.scalar(select(func.sum(Chunk.count)).where(IS_LEASED)) or 0
            room = self._settings.window - int(on_the_way)
            if room <= 0:
                return [], False
            most = min(room, MAX_AT_ONCE)
            waiting = {priority: self._waiting(session, priority, most) for priority in Priority}
        lines = {priority: iter(found) for priority, found in waiting.items()}
        picked: dict[str, list[int]] = {}
        while room > 0:
            first = Priority.BATCH if self._turns.next_is_batch() else Priority.INTERACTIVE
            order = (first, *(other for other in Priority if other is not first))
            found = next((chunk for priority in order if (chunk := next(lines[priority], None))), None)
            if found is None:
                break
            job_id, number, count = found
            picked.setdefault(job_id, []).append(number)
            room -= count
        return list(picked.items()), room > 0 and any(len(found) == most for found in waiting.values())

    def _waiting(self, session: Session, priority: Priority, most: int) -> Sequence[tuple[str, int, int]]:
        query = (
            select(Chunk.job_id, Chunk.number, Chunk.count)
            .where(IS_WAITING, Chunk.priority == PRIORITY_NUMBERS[priority])
            .order_by(Chunk.created, Chunk.job_id, Chunk.number)
            .limit(most)
        )
        return [(job_id, number, count) for job_id, number, count in session.execute(query)]

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

    def _send_lost(self, job_id: str, *, blamed: bool) -> int:
        """Sends the chunks of a job again whose lease has run out.

        Args:
            job_id: the job.
            blamed: whether it counts as an attempt; not where the store has been away.
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
            lost = [chunk for chunk in chunks if chunk.sent]
            if lost and not blamed:
                for chunk in lost:
                    chunk.deadline = to_microseconds(now + self._settings.retry)
                chunks, lost = [chunk for chunk in chunks if not chunk.sent], []
            for chunk in lost:
                chunk.losses += 1
                chunk.attempts += chunk.heard
            ending = None
            given_up = [chunk for chunk in lost if chunk.attempts >= self._settings.attempts]
            if given_up:
                why = next(
                    (chunk.problem for chunk in given_up if chunk.problem), "nothing more was heard of it"
                )
                problem = f"chunk {given_up[0].number} was begun {given_up[0].attempts} times: {why}"
                ending = end(session, job, State.FAILED, now, error=AttemptsExhaustedError(problem))
            tasks = [] if given_up else self._lease(job, chunks)
        if ending:
            self._notices.ended(ending)
        elif lost:
            self._notices.lost(len(lost))
            log.warning(
                "nothing was heard of %d chunks; they are sent again", len(lost), extra={"job": job_id}
            )
        return self._publish(job_id, tasks)

    def _lease(self, job: Job, chunks: Sequence[Chunk]) -> list[EncodeTask]:
        """Notes that chunks of a locked job are being sent; returns the messages."""
        if not chunks:
            return []
        job.lease += 1
        deadline = to_microseconds(self._clock() + SENDING_SECONDS)
        for chunk in chunks:
            chunk.state = ChunkState.LEASED
            chunk.lease = job.lease
            chunk.deadline = deadline
            chunk.sent = chunk.heard = False
        return list(encode_tasks(job, chunks))

    def _publish(self, job_id: str, tasks: Sequence[EncodeTask]) -> int:
        """Sends messages; what cannot be sent is due again at once."""
        sent: list[int] = []
        try:
            for task in tasks:
                failpoints.reach("gateway.after-lease", job=job_id, prompt=task.prompt)
                self._outlet.publish(task)
                failpoints.reach("gateway.after-publish", job=job_id, prompt=task.prompt)
                sent += [chunk.chunk for chunk in task.chunks]
        except BrokerUnavailableError:
            unsent = [chunk.chunk for task in tasks for chunk in task.chunks if chunk.chunk not in sent]
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
            self._ledger.sent(job_id, sent)
        return len(sent)

    def _store_answers(self) -> bool:
        try:
            # A store whose disk is full answers, and takes nothing.
            self._store.check()
        except StoreUnavailableError as error:
            log.warning("the store takes nothing, so that nothing is sent again: %s", error)
            return False
        return True
