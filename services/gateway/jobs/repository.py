"""The repository of jobs: accepts, reads, lists, and cancels them."""

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from sqlalchemy import exists, func, select, tuple_
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from smalti.errors import (
    InvalidInputError,
    JobNotFoundError,
    OverloadedError,
    QuotaExceededError,
    RequestIdReusedError,
)
from smalti.service import failpoints
from smalti.services.gateway.database.clock import to_microseconds
from smalti.services.gateway.database.tables import (
    DEFAULT_TENANT,
    IS_OPEN,
    OPEN_STATES,
    PRIORITY_NUMBERS,
    Chunk,
    Job,
    JobState,
    Label,
    PageCursor,
    ScoredCandidate,
    page_of,
)
from smalti.services.gateway.jobs import tenants
from smalti.services.gateway.jobs.admission import Admissions
from smalti.services.gateway.jobs.capacity import MIN_RETRY_SECONDS, Demand, check_capacity
from smalti.services.gateway.jobs.context import GatewayContext
from smalti.services.gateway.jobs.lifecycle import end, lock, new_chunk, remove
from smalti.services.gateway.jobs.messages import fits
from smalti.services.gateway.jobs.spec import JobParameters, JobSpec, rows_kept
from smalti.services.gateway.jobs.tenants import UNLIMITED, Limits
from smalti.services.gateway.models import ModelCard

RETENTION_SECONDS: Final = 60.0
"""Time for which the longest retention of a tenant is taken for granted."""
MAX_TRIES: Final = 10
"""Maximum number of tries to store a job whose room others take at the same time."""


@dataclass(frozen=True, kw_only=True)
class JobSnapshot:
    """A job at one point in time."""

    job: Job
    """Detached from its transaction; read-only."""
    pictures: Sequence[ScoredCandidate] = ()
    """The pictures of a succeeded job, the best first, if they were asked for."""
    jobs_ahead: int | None = None
    """Number of open jobs that are served before this one; None unless the job is queued."""


@dataclass(frozen=True, kw_only=True)
class JobFilter:
    """A filter for the jobs to list; empty fields match every job."""

    states: tuple[JobState, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)
    created_since: int | None = None
    """Earliest time of creation in microseconds, inclusive."""
    created_before: int | None = None
    """Latest time of creation in microseconds, exclusive."""
    tenant: str | None = None
    """Whose jobs; None for those of all tenants."""


class JobRepository:
    """The jobs in the database; thread-safe, and every call blocks."""

    def __init__(self, context: GatewayContext) -> None:
        self._database = context.database
        self._catalogue = context.catalogue
        self._settings = context.settings
        self._events = context.events
        self._clock = context.clock
        self._limits = Limits.load(context.settings)
        self.admissions = Admissions(context.database, self._limits)
        self._was_idle = True
        """Whether no job was open when it was last known; admission finds out if that has changed."""
        self._retentions: dict[str, tuple[float, int]] = {}
        """What tenants may have at most, in seconds, and until when that is taken for granted."""

    def find_request(
        self, request_id: str, request_hash: str, *, tenant: str = DEFAULT_TENANT
    ) -> JobSnapshot | None:
        """Returns the job that an earlier request with this request_id has created; None if there is none.

        Raises:
            RequestIdReusedError: the earlier request had other content.
        """
        with self._database.read() as session:
            query = select(Job).where(Job.tenant == tenant, Job.request_id == request_id)
            job = session.scalars(query).one_or_none()
            if job is None:
                return None
            if job.request_hash != request_hash:
                raise RequestIdReusedError(job.id)
            return self._snapshot(session, job, full=True)

    def check_capacity(self, job_spec: JobSpec) -> None:
        """Raises what `create` would for a job for which there is no room."""
        with self._database.read() as session:
            check_capacity(session, self._limits, self._demand(job_spec))

    def recount(self) -> int:
        """Corrects the counters of tenants; returns of how many."""
        corrected = tenants.recount(self._database)
        if corrected:
            self._events.recounted(corrected)
        return corrected

    def create(self, job_spec: JobSpec) -> JobSnapshot:
        """Accepts a job. Once this returns, the job is stored and will end, whatever fails.

        Raises:
            RequestIdReusedError: the request_id belongs to another request of the tenant.
            OverloadedError: too many jobs are open, or stored.
            QuotaExceededError: the tenant has used up a limit of its own.
            InvalidInputError: n is greater than the number of candidates, the prompt has too many bytes, or there is no
                such tenant.
        """
        if job_spec.card is None:
            job_spec = replace(job_spec, card=self._catalogue.choose().card)
        try:
            snapshot = self._admit(job_spec)
        except IntegrityError:
            found = self.find_request(
                job_spec.request_id or "", job_spec.request_hash or "", tenant=job_spec.tenant
            )
            if found is None:
                raise
            return found
        failpoints.reach("gateway.after-accept", job=snapshot.job.id, prompt=job_spec.prompt)
        self._events.created(snapshot.job.id)
        return snapshot

    def _admit(self, job_spec: JobSpec) -> JobSnapshot:
        # Whether other jobs are open matters only where it decides on the number of candidates.
        depends = job_spec.candidates is None
        for _ in range(MAX_TRIES):
            idle = self._was_idle
            job = self._new_job(job_spec, idle=idle and depends)
            chunks = self._new_chunks(job)
            if not fits(job, Chunk(**chunks[0])):
                raise InvalidInputError("prompt", "has too many bytes for a message; shorten it")
            admission = self.admissions.admit(job, chunks, idle=idle if depends else None)
            if admission is not None:
                self._was_idle = False
                ahead = admission.others - (0 if job.priority else admission.others_batch)
                return JobSnapshot(job=job, jobs_ahead=ahead)
            demand = replace(self._demand(job_spec), candidates=job.candidates)
            try:
                with self._database.read() as session:
                    usage = check_capacity(session, self._limits, demand)
            except (InvalidInputError, QuotaExceededError):
                if not (idle and depends):
                    raise
                depends = False  # More than the default is given where the tenant may have it.
                continue
            self._was_idle = usage.all_open_jobs == 0
            self._retentions[job_spec.tenant] = (self._clock() + RETENTION_SECONDS, usage.max_retention)
        # There was room whenever we looked, and others took it.
        raise OverloadedError("too many requests at the same time; try again", MIN_RETRY_SECONDS)

    def get(self, job_id: str, *, full: bool = True, tenant: str | None = None) -> JobSnapshot:
        """Returns a job, with its pictures if `full` is set; raises `JobNotFoundError`.

        Here and below, jobs of other tenants are not found; None finds those of all.
        """
        with self._database.read() as session:
            job = _owned(session.get(Job, job_id), job_id, tenant)
            return self._snapshot(session, job, full=full)

    def page(
        self, matching: JobFilter, *, after: PageCursor | None, limit: int, full: bool = False
    ) -> list[JobSnapshot]:
        """Returns a page of jobs, the newest first.

        Args:
            matching: which jobs to list.
            after: the last job of the previous page; None for the first page.
            limit: maximum number of jobs.
            full: whether to return their pictures.
        """
        query = page_of(select(Job), Job, after=after, limit=limit)
        if matching.tenant is not None:
            query = query.where(Job.tenant == matching.tenant)
        if matching.states:
            query = query.where(Job.state.in_(matching.states))
        if matching.created_since is not None:
            query = query.where(Job.created >= matching.created_since)
        if matching.created_before is not None:
            query = query.where(Job.created < matching.created_before)
        for key, value in matching.labels.items():
            query = query.where(
                exists().where(Label.job_id == Job.id, Label.key == key, Label.value == value)
            )
        with self._database.read() as session:
            jobs = session.scalars(query).all()
            pictures: dict[str, list[ScoredCandidate]] = {}
            if full:
                wanted = [job.id for job in jobs if job.state is JobState.SUCCEEDED]
                for picture in session.scalars(
                    select(ScoredCandidate)
                    .where(ScoredCandidate.job_id.in_(wanted), ScoredCandidate.rank.is_not(None))
                    .order_by(ScoredCandidate.rank)
                ):
                    pictures.setdefault(picture.job_id, []).append(picture)
            return [JobSnapshot(job=job, pictures=pictures.get(job.id, ())) for job in jobs]

    def cancel(self, job_id: str, *, tenant: str | None = None) -> JobSnapshot:
        """Cancels a job and returns it; a job that has ended does not change. Raises `JobNotFoundError`."""
        with self._database.write() as session:
            job = _owned(lock(session, job_id), job_id, tenant)
            is_open = job.state in OPEN_STATES
            outcome = end(session, job, JobState.CANCELLED, self._clock()) if is_open else None
            session.flush()
            snapshot = self._snapshot(session, job, full=True)
        if outcome:
            self._events.ended(outcome)
        return snapshot

    def delete(self, job_id: str, *, tenant: str | None = None) -> None:
        """Deletes a job that has ended, with its pictures; does nothing if it is gone already."""
        with self._database.write() as session:
            job = lock(session, job_id)
            if job is None or tenant not in (None, job.tenant):
                return
            remove(session, job, self._clock())
        self._events.deleted(job_id)

    def versions(self, job_ids: Sequence[str]) -> dict[str, int]:
        """Returns the versions by job; jobs that do not exist are left out."""
        with self._database.read() as session:
            rows = session.execute(select(Job.id, Job.version).where(Job.id.in_(job_ids)))
            return {row.id: row.version for row in rows}

    def _demand(self, job_spec: JobSpec) -> Demand:
        """Returns what a job asks for, as far as it says so."""
        return Demand(
            tenant=job_spec.tenant,
            now=to_microseconds(self._clock()),
            candidates=job_spec.candidates or job_spec.n or 1,
            prompt=len(job_spec.prompt),
            retention=job_spec.retention,
        )

    def _retention_of(self, job_spec: JobSpec) -> float:
        """Returns for how long a job is kept. What a tenant may have at most is known once a job was refused for it."""
        if job_spec.retention is not None:
            return job_spec.retention
        until, longest = self._retentions.get(job_spec.tenant, (0.0, UNLIMITED))
        default = self._settings.default_retention
        return min(default, longest) if self._clock() < until else default

    def _new_job(self, job_spec: JobSpec, *, idle: bool) -> Job:
        now = self._clock()
        card = job_spec.card or self._catalogue.fleet.configured.card
        parameters = self._parameters(job_spec, card, idle=idle)
        rows = (card.side - parameters.keep_rows) * parameters.candidates
        brought = [parameters.model_dump(mode="json", exclude_none=True), job_spec.given, job_spec.labels]
        return Job(
            id=str(uuid.uuid4()),
            version=1,
            state=JobState.QUEUED,
            tenant=job_spec.tenant,
            revision=parameters.revision,
            pinned=job_spec.pinned,
            request_id=job_spec.request_id,
            request_hash=job_spec.request_hash,
            parameters=brought[0],
            size=len(json.dumps(brought)),
            given=list(job_spec.given),
            priority=PRIORITY_NUMBERS[job_spec.priority],
            labels=dict(job_spec.labels),
            created=to_microseconds(now),
            expires=to_microseconds(now + job_spec.time_limit),
            retention=to_microseconds(self._retention_of(job_spec)),
            candidates=parameters.candidates,
            rows=rows,
            rows_drawn=0,
            candidates_generated=0,
            candidates_decoded=0,
            candidates_ranked=0,
            pictures_to_refine=parameters.n if parameters.second_pass else 0,
            pictures_refined=0,
            pictures_refused=0,
            refining=False,
            prompt_encoded=False,
            webhook=job_spec.webhook.model_dump(exclude_none=True) if job_spec.webhook else None,
            lease=0,
            trace=job_spec.trace.model_dump() if job_spec.trace else None,
        )

    def _parameters(self, job_spec: JobSpec, card: ModelCard, *, idle: bool) -> JobParameters:
        candidates = job_spec.candidates
        if candidates is None:
            default = card.message.default_candidates
            candidates = max(default, self._settings.idle_candidates) if idle else default
            candidates = max(min(candidates, self._settings.candidates), job_spec.n or 1)
        n = min(card.message.default_n, candidates) if job_spec.n is None else job_spec.n
        if n > candidates:
            raise InvalidInputError(
                "n", f"must not be greater than candidates ({candidates}), got {n}; raise candidates"
            )
        refines = job_spec.second_pass is not None and job_spec.second_pass.refine is not None
        return JobParameters(
            model=card.name,
            revision=card.revision,
            prompt=job_spec.prompt,
            n=n,
            candidates=candidates,
            first_candidate=job_spec.first_candidate,
            seed=job_spec.seed,
            sampling=job_spec.sampling,
            keep_rows=rows_kept(job_spec.given, job_spec.strength, card.side),
            strength=job_spec.strength,
            vary=job_spec.vary,
            diversity=job_spec.diversity,
            second_pass=job_spec.second_pass,
            refiner=card.refiner_revision if refines else None,
        )

    def _new_chunks(self, job: Job) -> list[dict[str, Any]]:
        first, size = job.parameters["first_candidate"], self._settings.chunk
        return [
            new_chunk(job, number, first=first + start, count=min(size, job.candidates - start))
            for number, start in enumerate(range(0, job.candidates, size))
        ]

    def _snapshot(self, session: Session, job: Job, *, full: bool) -> JobSnapshot:
        pictures: Sequence[ScoredCandidate] = ()
        if full and job.state is JobState.SUCCEEDED:
            pictures = ranked_pictures(session, job.id)
        ahead = self._ahead(session, job) if job.state is JobState.QUEUED else None
        return JobSnapshot(job=job, pictures=pictures, jobs_ahead=ahead)

    def _ahead(self, session: Session, job: Job) -> int:
        """Returns the number of open jobs that are served before a job."""
        before = (Job.priority < job.priority) | (
            (Job.priority == job.priority) & (tuple_(Job.created, Job.id) < (job.created, job.id))
        )
        query = select(func.count()).select_from(Job).where(IS_OPEN, before)
        return session.scalar(query) or 0


def _owned(job: Job | None, job_id: str, tenant: str | None) -> Job:
    if job is None or tenant not in (None, job.tenant):
        raise JobNotFoundError(job_id)
    return job


def all_candidates(session: Session, job_id: str) -> Sequence[ScoredCandidate]:
    """Returns the candidates of a job, by index."""
    query = select(ScoredCandidate).where(ScoredCandidate.job_id == job_id)
    return session.scalars(query.order_by(ScoredCandidate.candidate)).all()


def ranked_pictures(session: Session, job_id: str) -> Sequence[ScoredCandidate]:
    """Returns the chosen pictures of a job, the best first."""
    query = (
        select(ScoredCandidate)
        .where(ScoredCandidate.job_id == job_id, ScoredCandidate.rank.is_not(None))
        .order_by(ScoredCandidate.rank)
    )
    return session.scalars(query).all()
