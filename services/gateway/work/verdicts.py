"""The verdicts of the operator's policy on the pictures of jobs, before anybody gets them."""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any, Final

from sqlalchemy import or_, update

from smalti.errors import DamagedObjectError, MissingObjectError, UnavailableError
from smalti.policy import PictureToCheck, Verdict
from smalti.services.gateway.database.clock import to_microseconds
from smalti.services.gateway.database.tables import IS_OPEN, Chunk, Job, ScoredCandidate
from smalti.services.gateway.jobs.aside import apart
from smalti.services.gateway.jobs.context import GatewayContext
from smalti.services.gateway.jobs.lifecycle import chunk_of, count_refused, lock_open, touch
from smalti.services.gateway.jobs.reading import pictures_to_check
from smalti.services.gateway.policy.content_policy import Subject
from smalti.services.gateway.work.redoing import redo

log = logging.getLogger(__name__)

MAX_JOBS: Final = 4
"""Maximum number of jobs whose pictures are asked about at the same time."""
READING_SECONDS: Final = 60.0
"""Time that the pictures of a job may take to be read, in addition to the policy's time for an answer."""


class PictureChecks:
    """Asks about pictures in threads of its own, since the hook may take seconds; thread-safe.

    Of several gateways one asks: it claims the job in the database, for a time within which it has an answer or died.
    """

    def __init__(self, context: GatewayContext, finish: Callable[[str], object]) -> None:
        """Starts the threads.

        Args:
            context: shared by the parts of the gateway.
            finish: called with a job once there are verdicts on its pictures.
        """
        self._context = context
        self._finish = finish
        self._threads = ThreadPoolExecutor(MAX_JOBS, thread_name_prefix="verdicts")
        self._lock = threading.Lock()
        self._asking: set[str] = set()
        """The jobs that this gateway asks about, or will soon."""

    def asks(self, job: Job) -> bool:
        """Returns whether a gateway asks about a job, or will soon; it finishes the job afterwards."""
        if job.asked_until is not None and job.asked_until > to_microseconds(self._context.clock()):
            return True
        with self._lock:
            return job.id in self._asking

    def start(self, job: Job, chunks: Sequence[Chunk], pictures: Sequence[ScoredCandidate]) -> None:
        """Asks about pictures soon. While the hook is away, nothing happens; the sweeper comes back to the job.

        Args:
            job: the job, detached from its transaction.
            chunks: its chunks of candidates.
            pictures: the pictures without a verdict.
        """
        if self._context.policy.waits:
            return
        with self._lock:
            if job.id in self._asking:
                return
            self._asking.add(job.id)
        self._threads.submit(copy_context().run, self._run, job, chunks, pictures)

    def close(self) -> None:
        """Ends the threads after their current call."""
        self._threads.shutdown(cancel_futures=True)

    def _run(self, job: Job, chunks: Sequence[Chunk], pictures: Sequence[ScoredCandidate]) -> None:
        try:
            with apart(self._context, job.id):
                try:
                    with self._claimed(job.id) as until:
                        if until is not None:
                            self._ask(job, chunks, pictures, until)
                finally:
                    with self._lock:
                        self._asking.discard(job.id)
                if until is not None:
                    self._finish(job.id)
        except UnavailableError as error:
            log.warning("the job waits for the verdicts on its pictures: %s", error, extra={"job": job.id})

    @contextmanager
    def _claimed(self, job_id: str) -> Iterator[int | None]:
        """Claims a job while the block runs.

        Yields the time until which it is claimed, which tells this claim from others of this gateway; None if another
        gateway asks about the job, or it has ended.
        """
        database, now = self._context.database, self._context.clock()
        until = to_microseconds(now + self._context.policy.timeout + READING_SECONDS)
        is_free = or_(Job.asked_until.is_(None), Job.asked_until <= to_microseconds(now))
        with database.write() as session:
            claim = (
                update(Job)
                .where(Job.id == job_id, IS_OPEN, is_free)
                .values(asked_until=until, asked_by=database.id)
            )
            is_mine = bool(session.execute(claim).rowcount)  # type: ignore[attr-defined]
        try:
            yield until if is_mine else None
        finally:
            if is_mine:
                with database.write() as session:
                    mine = Job.id == job_id, Job.asked_until == until, Job.asked_by == database.id
                    session.execute(update(Job).where(*mine).values(asked_until=None, asked_by=None))

    def _ask(
        self, job: Job, chunks: Sequence[Chunk], pictures: Sequence[ScoredCandidate], until: int
    ) -> None:
        contents, lost = [], []
        for picture in pictures:
            try:
                content = self._context.store.get(picture.key, sha256=picture.sha256)
                contents.append(PictureToCheck(candidate=picture.candidate, content=content))
            except (MissingObjectError, DamagedObjectError):
                lost.append(picture)
        if lost:
            again = {chunk_of(chunks, picture.candidate).number for picture in lost}
            problem = "its pictures are missing or damaged"
            redo(self._context, job.id, sorted(again), problem, *(picture.key for picture in lost))
            return
        verdicts = self._context.policy.check_pictures(pictures_to_check(job, contents), Subject.PICTURE)
        self._store(job.id, pictures, verdicts, until)

    def _store(
        self, job_id: str, pictures: Sequence[ScoredCandidate], verdicts: Sequence[Verdict], until: int
    ) -> None:
        refused = sum(verdict.refused for verdict in verdicts)
        with self._context.database.write() as session:
            job = lock_open(session, job_id)
            if job is None or (job.asked_until, job.asked_by) != (until, self._context.database.id):
                return  # The claim was lost, such as while this gateway was suspended, and another one asks.
            for picture, verdict in zip(pictures, verdicts, strict=True):
                values: dict[str, Any] = {"checked": True}
                if verdict.refused:
                    values |= {"refusal": verdict.message, "rank": None}
                # Another picture may have taken its place meanwhile, which nobody was asked about.
                is_same = ScoredCandidate.sha256 == picture.sha256, ScoredCandidate.key == picture.key
                mine = ScoredCandidate.job_id == job_id, ScoredCandidate.candidate == picture.candidate
                session.execute(update(ScoredCandidate).where(*mine, *is_same).values(values))
            if refused:
                count_refused(session, job)
                touch(job)
        if refused:
            log.info("the policy refuses %d of %d pictures", refused, len(pictures), extra={"job": job_id})
            self._context.events.changed(job_id)
