"""Jobs as their users know them: they are accepted, looked at, listed, and cancelled."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import exists, func, insert, select, tuple_
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from smalti.errors import InvalidInputError, JobNotFoundError, OverloadedError, RequestIdReusedError
from smalti.registry.spec import ModelSpec
from smalti.service import failpoints
from smalti.services.gateway.database.clock import Clock, to_microseconds
from smalti.services.gateway.database.connection import Database
from smalti.services.gateway.database.tables import (
    IS_OPEN,
    OPEN,
    PRIORITY_NUMBERS,
    Chunk,
    ChunkState,
    Job,
    Label,
    Picture,
    State,
)
from smalti.services.gateway.jobs.lifecycle import end, lock
from smalti.services.gateway.jobs.messages import fits
from smalti.services.gateway.jobs.observer import JobObserver
from smalti.services.gateway.jobs.spec import JobSpec, Parameters
from smalti.services.gateway.settings import GatewaySettings

MIN_RETRY, MAX_RETRY_SECONDS = 1.0, 60.0
RECENT_SECONDS: Final = 60.0
"""How long ago a job may have ended that tells how quickly places become free."""


@dataclass(frozen=True)
class Snapshot:
    """A job as it is at one time."""

    job: Job
    """No longer part of a transaction; not to be changed."""
    pictures: Sequence[Picture] = ()
    """The best first; only of a job that has succeeded, and where they were asked for."""
    jobs_ahead: int | None = None


@dataclass(frozen=True)
class Position:
    """Where a page of a list begins: behind this job."""

    created: int
    id: str


@dataclass(frozen=True)
class Conditions:
    """Which jobs are listed."""

    states: tuple[State, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)
    created_since: int | None = None
    created_before: int | None = None


class Jobs:
    """The jobs; every thread may use it, and every call blocks."""

    def __init__(
        self,
        database: Database,
        spec: ModelSpec,
        settings: GatewaySettings,
        notices: JobObserver,
        clock: Clock,
    ) -> None:
        """Takes what it works with.

        Args:
            database: where the jobs are.
            spec: the model.
            settings: the limits.
            notices: told of every change.
            clock: says what time it is.
        """
        self._database = database
        self._spec = spec
        self._settings = settings
        self._notices = notices
        self._clock = clock

    def find_request(self, request_id: str, request_hash: str) -> Snapshot | None:
        """Returns the job that was made by an earlier request; None when there was none.

        Raises:
            RequestIdReusedError: the earlier request had another content.
        """
        with self._database.read() as session:
            job = session.scalars(select(Job).where(Job.request_id == request_id)).one_or_none()
            if job is None:
                return None
            if job.request_hash != request_hash:
                raise RequestIdReusedError(job.id)
            return self._snapshot(session, job, full=True)

    def check_room(self) -> None:
        """Raises `OverloadedError` when no more jobs may be open."""
        with self._database.read() as session:
            self._check_room(session)

    def create(self, order: JobSpec) -> Snapshot:
        """Accepts a job. When this returns it is stored, and will end whatever happens.

        Raises:
            RequestIdReusedError: its request_id belongs to another request.
            OverloadedError: too many jobs are open.
            InvalidInputError: n is more than the candidates, or the prompt has too many bytes.
        """
        try:
            with self._database.write() as session:
                # Of two that come together one sees the other; so the limit is exact.
                self._database.exclusive(session)
                open_jobs = self._check_room(session)
                job = self._new_job(order, idle=open_jobs == 0)
                chunks = self._new_chunks(job)
                if not fits(job, Chunk(**chunks[0])):
                    raise InvalidInputError("prompt", "has too many bytes for a message; make it shorter")
                session.add(job)
                session.flush()
                session.execute(insert(Chunk), chunks)
                if order.labels:
                    labels = [
                        {"job_id": job.id, "key": key, "value": value} for key, value in order.labels.items()
                    ]
                    session.execute(insert(Label), labels)
                snapshot = Snapshot(job, jobs_ahead=open_jobs if job.priority else self._ahead(session, job))
        except IntegrityError:
            found = self.find_request(order.request_id or "", order.request_hash or "")
            if found is None:
                raise
            return found
        failpoints.reach("gateway.after-accept", job=job.id, prompt=order.prompt)
        self._notices.created(job.id)
        return snapshot

    def get(self, job_id: str, *, full: bool = True) -> Snapshot:
        """Returns a job as it is; raises `JobNotFoundError`."""
        with self._database.read() as session:
            job = session.get(Job, job_id)
            if job is None:
                raise JobNotFoundError(job_id)
            return self._snapshot(session, job, full=full)

    def page(
        self, conditions: Conditions, *, behind: Position | None, limit: int, full: bool = False
    ) -> list[Snapshot]:
        """Returns jobs, the newest first.

        Args:
            conditions: which.
            behind: the last one of the page before.
            limit: how many at most.
            full: with their pictures.
        """
        query = select(Job).order_by(Job.created.desc(), Job.id.desc()).limit(limit)
        if conditions.states:
            query = query.where(Job.state.in_(conditions.states))
        if conditions.created_since is not None:
            query = query.where(Job.created >= conditions.created_since)
        if conditions.created_before is not None:
            query = query.where(Job.created < conditions.created_before)
        for key, value in conditions.labels.items():
            query = query.where(
                exists().where(Label.job_id == Job.id, Label.key == key, Label.value == value)
            )
        if behind is not None:
            query = query.where(tuple_(Job.created, Job.id) < (behind.created, behind.id))
        with self._database.read() as session:
            jobs = session.scalars(query).all()
            pictures: dict[str, list[Picture]] = {}
            if full:
                wanted = [job.id for job in jobs if job.state is State.SUCCEEDED]
                for picture in session.scalars(
                    select(Picture)
                    .where(Picture.job_id.in_(wanted), Picture.rank.is_not(None))
                    .order_by(Picture.rank)
                ):
                    pictures.setdefault(picture.job_id, []).append(picture)
            return [Snapshot(job, pictures.get(job.id, ())) for job in jobs]

    def cancel(self, job_id: str) -> Snapshot:
        """Cancels a job; one that has ended stays as it is. Raises `JobNotFoundError`."""
        with self._database.write() as session:
            job = lock(session, job_id)
            if job is None:
                raise JobNotFoundError(job_id)
            ending = end(session, job, State.CANCELLED, self._clock()) if job.state in OPEN else None
            session.flush()
            snapshot = self._snapshot(session, job, full=True)
        if ending:
            self._notices.ended(ending)
        return snapshot

    def versions(self, job_ids: Sequence[str]) -> dict[str, int]:
        """Returns the versions of jobs; those that are not there are left out."""
        with self._database.read() as session:
            rows = session.execute(select(Job.id, Job.version).where(Job.id.in_(job_ids)))
            return {row.id: row.version for row in rows}

    def _check_room(self, session: Session) -> int:
        """Returns how many jobs are open."""
        open_jobs = session.scalar(select(func.count()).select_from(Job).where(IS_OPEN)) or 0
        if open_jobs >= self._settings.open_jobs:
            since = to_microseconds(self._clock() - RECENT_SECONDS)
            ended = session.scalar(select(func.count()).select_from(Job).where(Job.ended >= since)) or 0
            # A place becomes free when a job ends; where none has, nobody knows.
            seconds = RECENT_SECONDS / ended if ended else MAX_RETRY_SECONDS / 6
            seconds = min(max(seconds, MIN_RETRY), MAX_RETRY_SECONDS)
            raise OverloadedError(f"{open_jobs} jobs are open already; try again in {seconds:.0f} s", seconds)
        return open_jobs

    def _new_job(self, order: JobSpec, *, idle: bool) -> Job:
        now = self._clock()
        parameters = self._parameters(order, idle=idle)
        rows = (self._spec.side - order.keep_rows) * parameters.candidates
        return Job(
            id=str(uuid.uuid4()),
            version=1,
            state=State.QUEUED,
            request_id=order.request_id,
            request_hash=order.request_hash,
            parameters=parameters.model_dump(mode="json"),
            given=list(order.given),
            priority=PRIORITY_NUMBERS[order.priority],
            labels=dict(order.labels),
            created=to_microseconds(now),
            expires=to_microseconds(now + order.time_limit),
            retention=to_microseconds(order.retention),
            candidates=parameters.candidates,
            rows=rows,
            rows_drawn=0,
            drawn=0,
            decoded=0,
            ranked=0,
            encoded=False,
            lease=0,
            trace=order.trace.model_dump() if order.trace else None,
        )

    def _parameters(self, order: JobSpec, *, idle: bool) -> Parameters:
        folder = self._spec.folder
        candidates = order.candidates
        if candidates is None:
            usual = folder.defaults.candidates
            candidates = max(usual, self._settings.idle_candidates) if idle else usual
            candidates = max(min(candidates, self._settings.candidates), order.n or 1)
        n = min(folder.defaults.n, candidates) if order.n is None else order.n
        if n > candidates:
            raise InvalidInputError(
                "n", f"{n} pictures cannot be chosen from {candidates} candidates; ask for more"
            )
        return Parameters(
            model=folder.name,
            revision=folder.revision,
            prompt=order.prompt,
            n=n,
            candidates=candidates,
            first_candidate=order.first_candidate,
            seed=order.seed,
            sampling=order.sampling,
            keep_rows=order.keep_rows,
        )

    def _new_chunks(self, job: Job) -> list[dict[str, Any]]:
        first, size = job.parameters["first_candidate"], self._settings.chunk
        return [
            {
                "job_id": job.id,
                "number": number,
                "priority": job.priority,
                "created": job.created,
                "first": first + start,
                "count": min(size, job.candidates - start),
                "state": ChunkState.WAITING,
                "reached": 0,
                "rows_drawn": 0,
                "lease": 0,
                "sent": False,
                "heard": False,
                "losses": 0,
                "attempts": 0,
            }
            for number, start in enumerate(range(0, job.candidates, size))
        ]

    def _snapshot(self, session: Session, job: Job, *, full: bool) -> Snapshot:
        pictures: Sequence[Picture] = ()
        if full and job.state is State.SUCCEEDED:
            pictures = ranked_pictures(session, job.id)
        ahead = self._ahead(session, job) if job.state is State.QUEUED else None
        return Snapshot(job, pictures, ahead)

    def _ahead(self, session: Session, job: Job) -> int:
        """Counts the open jobs that are served before this one."""
        before = (Job.priority < job.priority) | (
            (Job.priority == job.priority) & (tuple_(Job.created, Job.id) < (job.created, job.id))
        )
        query = select(func.count()).select_from(Job).where(IS_OPEN, before)
        return session.scalar(query) or 0


def ranked_pictures(session: Session, job_id: str) -> Sequence[Picture]:
    """Returns the pictures of a job that has succeeded, the best first."""
    query = select(Picture).where(Picture.job_id == job_id, Picture.rank.is_not(None)).order_by(Picture.rank)
    return session.scalars(query).all()
