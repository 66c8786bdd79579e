"""Binds jobs anew whose revision has no workers left, and tells why those wait that stay."""

import logging
from collections.abc import Collection
from functools import partial
from typing import Final

from sqlalchemy import Select, delete, exists, or_, select, tuple_, update
from sqlalchemy.orm import Session

from smalti.messages import ROUTES_SINCE
from smalti.services.gateway.database.tables import (
    IS_LEASED,
    IS_OPEN,
    IS_WAITING,
    Chunk,
    ChunkState,
    Job,
    JobState,
    Revision,
    ScoredCandidate,
)
from smalti.services.gateway.jobs.aside import is_not_set_aside
from smalti.services.gateway.jobs.context import GatewayContext
from smalti.services.gateway.jobs.lifecycle import chunks_of, forget_choice, reset, touch
from smalti.services.gateway.jobs.reading import UnreadableJobError, parameters_of
from smalti.services.gateway.models import HELLO_SECONDS, ModelCard, RevisionState

log = logging.getLogger(__name__)

GRACE_SECONDS: Final = 5.0
"""Time without workers of some stage after which jobs that have not begun are bound anew."""
GAP_SECONDS: Final = 10.0
"""Time between two looks after which the workers that are there are given the time to say hello first."""
BATCH_SIZE: Final = 100
"""Jobs that one transaction changes."""
MAX_BATCHES: Final = 20
"""Transactions of one call for a revision."""
MAX_SECONDS: Final = 2.0
"""Time that one call takes, so that hellos are stored meanwhile; a transaction may be slow."""

_NEEDS_WORKERS: Final = or_(
    Job.candidates_ranked < Job.candidates, Job.pictures_refined < Job.pictures_to_refine
)
"""What is ranked waits for the store or for the policy, and for no worker."""
_Place = tuple[int, str]
"""Time of creation and id of a job."""


class Binding:
    """Binds jobs anew; one thread per gateway, and one gateway at a time."""

    def __init__(self, context: GatewayContext) -> None:
        self._context = context
        self._database = context.database
        self._catalogue = context.catalogue
        self._clock = context.clock
        self._elapsed = context.elapsed
        self._looked: float | None = None
        self._began = 0.0
        """Since when it has looked without a gap."""
        self._missing: dict[str, float] = {}
        """Since when revisions have lacked workers."""
        self._served: set[str] = set()
        """The revisions whose jobs do not wait for workers any more."""
        self._places: dict[str, _Place] = {}
        """The last job that was looked at of a revision whose other jobs are to be looked at next."""

    def bind_anew(self) -> int:
        """Binds jobs anew whose revision lacks workers, where another one of the model has them; returns how many.

        Jobs that have begun start over, but only after the length of a lease, since their workers may come back. Jobs
        that name their revision stay.

        Raises:
            DatabaseUnavailableError: the database does not answer.
        """
        fleet, now = self._catalogue.fleet, self._elapsed()
        if self._looked is None or now - self._looked > GAP_SECONDS:
            # Who has come and gone meanwhile is not known.
            self._began, self._missing, self._served = now, {}, set()
        self._looked = now
        missing = [state for state in fleet.states if not state.is_available]
        self._missing = {
            state.card.revision: self._missing.get(state.card.revision, now) for state in missing
        }
        self._go_on({state.card.revision for state in fleet.available})
        if now - self._began < HELLO_SECONDS:
            return 0
        due = [state for state in missing if now - self._missing[state.card.revision] >= GRACE_SECONDS]
        with_work = self._with_work([state.card.revision for state in due]) if due else set()
        bound = 0
        for state in due:
            if state.card.revision in with_work:
                seconds = now - self._missing[state.card.revision]
                bound += self._bind_jobs(
                    state.card,
                    start_over=seconds >= self._context.settings.lease,
                    until=now + MAX_SECONDS,
                )
                self._tell(state)
        return bound

    def _with_work(self, revisions: Collection[str]) -> set[str]:
        """Returns which revisions have chunks that are not done, as indexes know it."""
        own = Chunk.revision == Revision.revision
        query = select(Revision.revision).where(
            Revision.revision.in_(revisions),
            or_(exists().where(IS_WAITING, own), exists().where(IS_LEASED, own)),
        )
        with self._database.read() as session:
            return set(session.scalars(query))

    def _bind_jobs(self, card: ModelCard, *, start_over: bool, until: float) -> int:
        if self._catalogue.rebind(card, lambda card: True) is None:
            return 0
        bound = 0
        after = self._places.pop(card.revision, None)
        for _ in range(MAX_BATCHES):
            found, after = self._bind_batch(card, after, start_over=start_over)
            bound += found
            if after is None or self._elapsed() >= until:
                break
        if after is not None:
            self._places[card.revision] = after
        if bound:
            log.info("%d jobs of %s %s are bound anew", bound, card.name, card.revision)
        return bound

    def _bind_batch(
        self, card: ModelCard, after: _Place | None, *, start_over: bool
    ) -> tuple[int, _Place | None]:
        """Binds some jobs of a revision anew.

        Args:
            card: the revision.
            after: the last job that was looked at; None begins with the first.
            start_over: whether to bind those that have begun, too.

        Returns:
            The number of jobs that are bound anew, and the last one that was looked at; None if no more follow.
        """
        states = [JobState.QUEUED, *([JobState.RUNNING] if start_over else [])]
        query = (
            select(Job)
            .where(
                IS_OPEN,
                Job.revision == card.revision,
                Job.pinned.is_(False),
                Job.state.in_(states),
                _NEEDS_WORKERS,
                is_not_set_aside(self._clock()),
            )
            .order_by(Job.created, Job.id)
            .limit(BATCH_SIZE)
            .with_for_update(skip_locked=True)
        )
        if after is not None:
            query = query.where(tuple_(Job.created, Job.id) > after)
        if self._catalogue.write < ROUTES_SINCE:
            # What was sent may be read later, and only newer messages tell whose work is whose.
            query = query.where(Job.lease == 0)
        changed = []
        with self._database.write() as session:
            jobs = session.scalars(query).all()
            last = (jobs[-1].created, jobs[-1].id) if len(jobs) == BATCH_SIZE else None
            for job in jobs:
                try:
                    target = self._catalogue.rebind(card, partial(fits, job, card))
                    # Nobody may serve what says no hello; while the broker is away, nobody says any.
                    if target is not None and (target.is_live or not job.lease):
                        bind(session, job, target.card)
                        changed.append(job.id)
                except UnreadableJobError as error:
                    log.warning("the job is not bound anew: %s", error, extra={"job": job.id})
        for job_id in changed:
            self._context.events.changed(job_id)
        return len(changed), last

    def _tell(self, state: RevisionState) -> None:
        """Tells clients why jobs wait."""
        trouble = f"waits for workers of {state.card.name} {state.card.revision}"
        query = select(Job).where(
            IS_OPEN,
            Job.revision == state.card.revision,
            _NEEDS_WORKERS,
            Job.trouble.is_(None),
            Job.set_aside_until.is_(None),
        )
        self._set_trouble(query, trouble)

    def _go_on(self, served: set[str]) -> None:
        """Takes back that jobs wait whose workers are there again."""
        self._served &= served
        if back := served - self._served:
            query = select(Job).where(
                IS_OPEN, Job.revision.in_(back), Job.trouble.is_not(None), Job.set_aside_until.is_(None)
            )
            if not self._set_trouble(query, None):
                self._served = served

    def _set_trouble(self, query: Select[Job], trouble: str | None) -> bool:
        """Sets the trouble of some jobs of a query; returns whether there were any."""
        with self._database.read() as session:
            if session.scalar(query.with_only_columns(Job.id).limit(1)) is None:
                return False
        with self._database.write() as session:
            jobs = session.scalars(query.limit(BATCH_SIZE).with_for_update(skip_locked=True)).all()
            for job in jobs:
                job.trouble = trouble
                touch(job)
        for job in jobs:
            self._context.events.changed(job.id)
        return True


def fits(job: Job, before: ModelCard, card: ModelCard) -> bool:
    """Returns whether another revision can do the work of a job.

    Args:
        job: the job.
        before: the revision that it is bound to.
        card: the other revision.

    Raises:
        UnreadableJobError: this version cannot read the job.
    """
    parameters = parameters_of(job)
    if job.given and not (card.has_same_tokens(before) and card.side == before.side):
        return False
    refine = parameters.second_pass is not None and parameters.second_pass.refine is not None
    return not refine or (
        card.refiner_revision is not None and card.trained_upscale == before.trained_upscale
    )


def bind(session: Session, job: Job, card: ModelCard) -> None:
    """Binds a locked, open job to another revision. What was done of it is done again.

    Args:
        session: a writing transaction.
        job: the job; `fits` must hold.
        card: the revision.
    """
    parameters = parameters_of(job)
    changed = {"revision": card.revision}
    if parameters.refiner is not None and card.refiner_revision is not None:
        changed["refiner"] = card.refiner_revision
    was_sent = {}
    if job.lease:
        job.lease += 1
        was_sent = {"binding": (parameters.binding or 0) + 1, "since_lease": job.lease}
        _start_over(session, job)
    job.parameters = {**job.parameters, **changed, **was_sent}
    job.rows = (card.side - parameters.keep_rows) * job.candidates
    job.revision = card.revision
    job.trouble = None
    touch(job)
    session.execute(
        update(Chunk)
        .where(Chunk.job_id == job.id, Chunk.state != ChunkState.DROPPED)
        .values(revision=card.revision)
    )


def _start_over(session: Session, job: Job) -> None:
    forget_choice(session, job)
    for chunk in chunks_of(session, job):
        reset(job, chunk)
        chunk.state = ChunkState.WAITING
        chunk.deadline = chunk.owner = chunk.objects = chunk.problem = None
        chunk.sent = chunk.begun = False
        chunk.losses = chunk.attempts = 0
    session.execute(delete(ScoredCandidate).where(ScoredCandidate.job_id == job.id))
    job.prompt_encoded = False
    job.prompt_reading = job.encodings = job.asked_until = job.asked_by = None
    job.pictures_refused = 0
    parameters = parameters_of(job)
    job.pictures_to_refine = (
        parameters.n if parameters.second_pass else 0
    )  # The policy may have refused some.
