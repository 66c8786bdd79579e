"""Binds jobs anew whose revision has no workers left, and tells why those wait that stay."""

import logging
from collections.abc import Collection
from functools import partial
from typing import Final

from sqlalchemy import Select, delete, select, update
from sqlalchemy.orm import Session

from smalti.services.gateway.database.tables import (
    IS_OPEN,
    Chunk,
    ChunkState,
    Job,
    JobState,
    ScoredCandidate,
)
from smalti.services.gateway.jobs.aside import is_not_set_aside
from smalti.services.gateway.jobs.context import GatewayContext
from smalti.services.gateway.jobs.lifecycle import chunks_of, forget_choice, reset, touch
from smalti.services.gateway.jobs.reading import UnreadableJobError, parameters_of
from smalti.services.gateway.models import ROUTES_SINCE, ModelCard, RevisionState

log = logging.getLogger(__name__)

GRACE_SECONDS: Final = 5.0
"""Time without workers of some stage after which jobs that have not begun are bound anew."""
BATCH_SIZE: Final = 100
"""Jobs that one transaction changes."""
MAX_BATCHES: Final = 20
"""Transactions of one call for a revision, so that hellos are stored in time."""


class Binding:
    """Binds jobs anew; one thread per gateway, and one gateway at a time."""

    def __init__(self, context: GatewayContext) -> None:
        self._context = context
        self._database = context.database
        self._catalogue = context.catalogue
        self._clock = context.clock
        self._elapsed = context.elapsed
        self._missing: dict[str, float] = {}
        """Since when revisions have lacked workers."""

    def bind_anew(self) -> int:
        """Binds jobs anew whose revision lacks workers, where another one of the model has them; returns how many.

        Jobs that have begun start over, but only after the length of a lease, since their workers may come back. Jobs
        that name their revision stay.

        Raises:
            DatabaseUnavailableError: the database does not answer.
        """
        fleet, now = self._catalogue.fleet, self._elapsed()
        served = [state.card.revision for state in fleet.available]
        missing = [state for state in fleet.states if not state.is_available]
        self._missing = {
            state.card.revision: self._missing.get(state.card.revision, now) for state in missing
        }
        self._go_on(served)
        bound = 0
        for state in missing:
            seconds = now - self._missing[state.card.revision]
            if seconds >= GRACE_SECONDS:
                bound += self._bind_jobs(state, start_over=seconds >= self._context.settings.lease)
                self._tell(state)
        return bound

    def _bind_jobs(self, state: RevisionState, *, start_over: bool) -> int:
        bound = 0
        if self._catalogue.rebind(state.card, lambda card: True) is None:
            return 0
        for _ in range(MAX_BATCHES):
            found = self._bind_batch(state.card, start_over=start_over)
            bound += found
            if found < BATCH_SIZE:
                break
        if bound:
            log.info("%d jobs of %s %s are bound anew", bound, state.card.name, state.card.revision)
        return bound

    def _bind_batch(self, card: ModelCard, *, start_over: bool) -> int:
        states = [JobState.QUEUED, *([JobState.RUNNING] if start_over else [])]
        # Sent messages may be read later, and only newer ones tell whose work is whose.
        was_sent = self._catalogue.write >= ROUTES_SINCE
        query = (
            select(Job)
            .where(
                IS_OPEN,
                Job.revision == card.revision,
                Job.pinned.is_(False),
                Job.state.in_(states),
                is_not_set_aside(self._clock()),
            )
            .order_by(Job.trouble.is_not(None), Job.created, Job.id)
            .limit(BATCH_SIZE)
            .with_for_update(skip_locked=True)
        )
        if not was_sent:
            query = query.where(Job.lease == 0)
        changed = []
        with self._database.write() as session:
            for job in session.scalars(query).all():
                try:
                    target = self._catalogue.rebind(card, partial(fits, job, card))
                    if target is not None:
                        bind(session, job, target.card)
                        changed.append(job.id)
                except UnreadableJobError as error:
                    log.warning("the job is not bound anew: %s", error, extra={"job": job.id})
        for job_id in changed:
            self._context.events.changed(job_id)
        return len(changed)

    def _tell(self, state: RevisionState) -> None:
        """Tells clients why jobs wait."""
        trouble = f"waits for workers of {state.card.name} {state.card.revision}"
        query = select(Job).where(
            IS_OPEN,
            Job.revision == state.card.revision,
            Job.trouble.is_(None),
            Job.set_aside_until.is_(None),
        )
        self._set_trouble(query, trouble)

    def _go_on(self, served: Collection[str]) -> None:
        """Takes back that jobs wait whose workers are there again."""
        query = select(Job).where(
            IS_OPEN, Job.revision.in_(served), Job.trouble.is_not(None), Job.set_aside_until.is_(None)
        )
        self._set_trouble(query, None)

    def _set_trouble(self, query: Select[Job], trouble: str | None) -> None:
        with self._database.read() as session:
            if session.scalar(query.with_only_columns(Job.id).limit(1)) is None:
                return
        with self._database.write() as session:
            jobs = session.scalars(query.limit(BATCH_SIZE).with_for_update(skip_locked=True)).all()
            for job in jobs:
                job.trouble = trouble
                touch(job)
        for job in jobs:
            self._context.events.changed(job.id)


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
