"""Changes of a job within a transaction: locking it, advancing it, and ending it once.

A transaction locks the job's row before it changes the job or its chunks. This order prevents deadlocks.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

from sqlalchemy import delete, func, insert, null, select, update
from sqlalchemy.orm import Session, object_session

from smalti.messages import MAX_CLOCK_SKEW_SECONDS
from smalti.rpc.errors import status_of
from smalti.rpc.reasons import reason_of
from smalti.services.gateway.database.clock import to_microseconds, to_seconds
from smalti.services.gateway.database.commit import notify_at_commit
from smalti.services.gateway.database.tables import (
    OPEN_STATES,
    Chunk,
    ChunkProgress,
    ChunkState,
    Job,
    JobState,
    ScoredCandidate,
    StoreAction,
    StoreTask,
)
from smalti.services.gateway.jobs import tenants
from smalti.services.gateway.jobs.notices import announce_end
from smalti.services.gateway.jobs.objects import known_keys
from smalti.services.gateway.jobs.observer import JobOutcome
from smalti.services.gateway.jobs.reading import parameter_of

LATE_SECONDS: Final = 60.0 + MAX_CLOCK_SKEW_SECONDS
"""Time after the expiry of a job's messages within which a stage may still write objects of the job."""

DELETE_AGAIN_SECONDS: Final = 3 * 24 * 3600.0
"""Time after which the objects of a removed job are deleted once more."""


def lock(session: Session, job_id: str, *, skip_locked: bool = False) -> Job | None:
    """Locks a job until the transaction ends.

    Args:
        session: a writing transaction.
        job_id: the job.
        skip_locked: return None instead of waiting for a transaction that holds the lock.

    Returns:
        The job; None if it does not exist, or is skipped.
    """
    return session.scalars(
        select(Job).where(Job.id == job_id).with_for_update(skip_locked=skip_locked)
    ).one_or_none()


def lock_open(session: Session, job_id: str, *, skip_locked: bool = False) -> Job | None:
    """Locks a job as `lock` does; returns None also if it has ended."""
    job = lock(session, job_id, skip_locked=skip_locked)
    return job if job is not None and job.state in OPEN_STATES else None


def chunks_of(session: Session, job: Job) -> list[Chunk]:
    """Returns the chunks of candidates of a job in the order of their numbers."""
    query = select(Chunk).where(Chunk.job_id == job.id, Chunk.pictures.is_(null())).order_by(Chunk.number)
    return list(session.scalars(query))


def chunk_of(chunks: Sequence[Chunk], candidate: int) -> Chunk:
    """Returns the chunk of a candidate."""
    return next(chunk for chunk in chunks if 0 <= candidate - chunk.first < chunk.count)


def new_chunk(
    job: Job, number: int, *, first: int, count: int, pictures: list[Any] | None = None
) -> dict[str, Any]:
    """Returns the row of a chunk that waits to be sent.

    Args:
        job: its job.
        number: its number.
        first: index of its first candidate; 0 for pictures to refine.
        count: number of its candidates or pictures.
        pictures: the pictures to refine as JSON; None for a chunk of candidates.
    """
    return {
        "job_id": job.id,
        "number": number,
        "priority": job.priority,
        "created": job.created,
        "revision": job.revision,
        "tenant": job.tenant,
        "first": first,
        "count": count,
        "state": ChunkState.WAITING,
        "reached": 0,
        "rows_drawn": 0,
        "lease": 0,
        "owner": None,
        "sent": False,
        "begun": False,
        "losses": 0,
        "attempts": 0,
        "pictures": pictures,
    }


def touch(job: Job) -> None:
    """Gives a locked job a new version, since clients can see a change; the other gateways are notified of it."""
    job.version += 1
    if session := object_session(job):
        notify_at_commit(session, job.id)


def start(job: Job, now: int) -> bool:
    """Sets a queued job to RUNNING; returns whether that has changed it.

    Args:
        job: a locked job.
        now: the time in microseconds.
    """
    if job.state is not JobState.QUEUED:
        return False
    job.state = JobState.RUNNING
    job.started = now
    return True


def advance(job: Job, chunk: Chunk, progress: ChunkProgress) -> bool:
    """Raises the progress of a chunk; late and duplicate events change nothing. Returns whether anything changed."""
    before = chunk.reached
    if progress <= before:
        return False
    chunk.reached = int(progress)
    if before < ChunkProgress.GENERATED <= progress:
        job.candidates_generated += chunk.count
        advance_rows(job, chunk, job.rows // job.candidates)
    if before < ChunkProgress.DECODED <= progress:
        job.candidates_decoded += chunk.count
    if before < ChunkProgress.RANKED <= progress:
        job.candidates_ranked += chunk.count
        chunk.state = ChunkState.DONE
        chunk.deadline = None
    return True


def advance_rows(job: Job, chunk: Chunk, rows: int) -> bool:
    """Raises the number of rows generated per candidate of a chunk; returns whether it changed."""
    if rows <= chunk.rows_drawn:
        return False
    job.rows_drawn += (rows - chunk.rows_drawn) * chunk.count
    chunk.rows_drawn = rows
    return True


def reset(job: Job, chunk: Chunk) -> None:
    """Sets the progress of a chunk back to nothing, since its objects are lost."""
    job.candidates_generated -= chunk.count if chunk.reached >= ChunkProgress.GENERATED else 0
    job.candidates_decoded -= chunk.count if chunk.reached >= ChunkProgress.DECODED else 0
    job.candidates_ranked -= chunk.count if chunk.reached >= ChunkProgress.RANKED else 0
    job.rows_drawn -= chunk.rows_drawn * chunk.count
    chunk.rows_drawn = 0
    chunk.reached = int(ChunkProgress.NOTHING)


def refined(job: Job, chunk: Chunk) -> bool:
    """Marks a chunk of pictures as refined; late and duplicate events change nothing. Returns whether it changed."""
    if chunk.state is ChunkState.DONE:
        return False
    chunk.state = ChunkState.DONE
    chunk.deadline = None
    job.pictures_refined += chunk.count
    return True


def store_choice(session: Session, pictures: Iterable[ScoredCandidate]) -> None:
    """Stores which candidates of a job become pictures: their ranks, from their order, the best first."""
    ranks = [
        {"job_id": picture.job_id, "candidate": picture.candidate, "rank": rank}
        for rank, picture in enumerate(pictures)
    ]
    session.execute(update(ScoredCandidate), ranks)


def count_refused(session: Session, job: Job) -> None:
    """Counts the pictures of a locked job that the operator's policy has refused."""
    of_job = ScoredCandidate.job_id == job.id, ScoredCandidate.refusal.is_not(None)
    job.pictures_refused = (
        session.scalar(select(func.count()).select_from(ScoredCandidate).where(*of_job)) or 0
    )


def forget_choice(session: Session, job: Job) -> None:
    """Undoes the choice of the pictures to refine, since some of their candidates must be made again."""
    if not job.refining:
        return
    job.refining = False
    job.pictures_refined = 0
    session.execute(delete(Chunk).where(Chunk.job_id == job.id, Chunk.pictures.is_not(null())))
    session.execute(update(ScoredCandidate).where(ScoredCandidate.job_id == job.id).values(rank=None))


def end(
    session: Session, job: Job, state: JobState, now: float, *, error: BaseException | None = None
) -> JobOutcome:
    """Ends an open job, and adds the tasks that its end causes in the object store.

    Args:
        session: a writing transaction.
        job: a locked, open job.
        state: its final state.
        now: the time in seconds.
        error: why it failed.

    Returns:
        The outcome, for the observers once the transaction is committed.
    """
    moment = to_microseconds(now)
    outcome = JobOutcome(
        job_id=job.id,
        state=state,
        reason=reason_of(error).name if error is not None else "",
        seconds=to_seconds(moment - job.created),
        was_running=job.state is JobState.RUNNING,
    )
    tenants.count_end(session, job)
    job.state = state
    touch(job)
    job.ended = moment
    job.delete_at = moment + job.retention
    if error is not None:
        job.error = status_of(error, during=f"job {job.id}").SerializeToString()
    announce_end(session, job, outcome.reason)
    session.execute(
        update(Chunk)
        .where(Chunk.job_id == job.id, Chunk.state.in_((ChunkState.WAITING, ChunkState.LEASED)))
        .values(state=ChunkState.DROPPED, deadline=None)
    )
    late = max(moment, job.expires) + to_microseconds(LATE_SECONDS)
    actions = [(StoreAction.CLEAN_UP, moment), (StoreAction.CLEAN_UP_LATE, late)]
    if state is not JobState.SUCCEEDED:
        actions.append((StoreAction.WRITE_MARKER, moment))
    _add_store_tasks(session, job, actions)
    return outcome


def remove(session: Session, job: Job, now: float) -> None:
    """Removes a job from the database, and adds the tasks that delete its objects.

    While a stage may still write objects of the job, everything but the marker is deleted; afterwards all is deleted,
    and once more days later.

    Args:
        session: a writing transaction.
        job: a locked job that has ended.
        now: the time in seconds.
    """
    moment = to_microseconds(now)
    late = job.expires + to_microseconds(LATE_SECONDS)
    # A marker that is not written yet still has to stop the stages.
    session.execute(
        delete(StoreTask).where(StoreTask.job_id == job.id, StoreTask.action != StoreAction.WRITE_MARKER)
    )
    late_at = max(moment, late)
    again_at = late_at + to_microseconds(DELETE_AGAIN_SECONDS)
    actions = [(StoreAction.DELETE_LATE, late_at), (StoreAction.DELETE_AGAIN, again_at)]
    if late > moment:
        actions.append((StoreAction.DELETE, moment))
    _add_store_tasks(session, job, actions)
    tenants.count_removal(session, job)
    notify_at_commit(session, job.id)
    session.delete(job)


def _add_store_tasks(session: Session, job: Job, actions: Iterable[tuple[StoreAction, int]]) -> None:
    """Adds tasks, each an action and the time in microseconds when it is due."""
    of_candidates = Chunk.job_id == job.id, Chunk.pictures.is_(null())
    chunks = session.scalar(select(func.count()).select_from(Chunk).where(*of_candidates)) or 0
    keys = known_keys(session, job)
    session.execute(
        insert(StoreTask),
        [
            {
                "job_id": job.id,
                "action": action,
                "due": due,
                "state": job.state,
                "chunks": chunks,
                "varied": bool(parameter_of(job, "vary", False)),
                "tries": 0,
                "keys": keys,
            }
            for action, due in actions
        ],
    )
