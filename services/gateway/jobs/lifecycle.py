"""What happens to a job, inside of a transaction: it is locked, it changes, it ends once.

Whoever changes a job locks its row first, and its chunks after it; so nobody waits for somebody who waits for them.
"""

from collections.abc import Iterable

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.orm import Session

from smalti.rpc.errors import status_of
from smalti.rpc.reasons import reason_of
from smalti.services.gateway.database.clock import to_microseconds, to_seconds
from smalti.services.gateway.database.tables import OPEN, Chore, Chunk, ChunkState, Job, Reached, State, Task
from smalti.services.gateway.jobs.observer import JobEnding

LATE_SECONDS = 60.0
"""After a job's messages have expired, how long a stage may still be about to write."""


def lock(session: Session, job_id: str, *, skip_locked: bool = False) -> Job | None:
    """Locks a job until the transaction ends.

    Args:
        session: the transaction; it must be one that writes.
        job_id: which.
        skip_locked: do not wait for another transaction that has it.

    Returns:
        None when there is none, or somebody else has it.
    """
    return session.scalars(
        select(Job).where(Job.id == job_id).with_for_update(skip_locked=skip_locked)
    ).one_or_none()


def lock_open(session: Session, job_id: str, *, skip_locked: bool = False) -> Job | None:
    """Locks a job that is open; None when there is none, or it has ended."""
    job = lock(session, job_id, skip_locked=skip_locked)
    return job if job is not None and job.state in OPEN else None


def chunks_of(session: Session, job: Job) -> list[Chunk]:
    """Returns the chunks of a locked job, in order."""
    return list(session.scalars(select(Chunk).where(Chunk.job_id == job.id).order_by(Chunk.number)))


def begin(job: Job, now: int) -> bool:
    """Notes that work on a job has begun; returns whether it was not known before."""
    if job.state is not State.QUEUED:
        return False
    job.state = State.RUNNING
    job.started = now
    return True


def reach(job: Job, chunk: Chunk, reached: Reached) -> bool:
    """Notes how far a chunk is; what comes late or twice changes nothing. Returns whether anything has changed."""
    before = chunk.reached
    if reached <= before:
        return False
    chunk.reached = int(reached)
    if before < Reached.DRAWN <= reached:
        job.drawn += chunk.count
        draw(job, chunk, job.rows // job.candidates)
    if before < Reached.DECODED <= reached:
        job.decoded += chunk.count
    if before < Reached.RANKED <= reached:
        job.ranked += chunk.count
        chunk.state = ChunkState.DONE
        chunk.deadline = None
    return True


def unreach(job: Job, chunk: Chunk) -> None:
    """Takes back how far a chunk was: what was made of it is gone."""
    job.drawn -= chunk.count if chunk.reached >= Reached.DRAWN else 0
    job.decoded -= chunk.count if chunk.reached >= Reached.DECODED else 0
    job.ranked -= chunk.count if chunk.reached >= Reached.RANKED else 0
    job.rows_drawn -= chunk.rows_drawn * chunk.count
    chunk.rows_drawn = 0
    chunk.reached = int(Reached.NOTHING)


def draw(job: Job, chunk: Chunk, rows: int) -> bool:
    """Notes how many rows are drawn of each of a chunk's candidates; returns whether there are more than before."""
    if rows <= chunk.rows_drawn:
        return False
    job.rows_drawn += (rows - chunk.rows_drawn) * chunk.count
    chunk.rows_drawn = rows
    return True


def end(
    session: Session, job: Job, state: State, now: float, *, error: BaseException | None = None
) -> JobEnding:
    """Ends a locked, open job; what is to be done in the store is noted with it.

    Args:
        session: the transaction.
        job: which.
        state: how it ends.
        now: the time in seconds.
        error: why it failed.

    Returns:
        What is to be told once the transaction is done.
    """
    moment = to_microseconds(now)
    ending = JobEnding(
        job_id=job.id,
        state=state,
        reason=reason_of(error).name if error is not None else "",
        seconds=to_seconds(moment - job.created),
        running=job.state is State.RUNNING,
    )
    job.state = state
    job.version += 1
    job.ended = moment
    job.delete_at = moment + job.retention
    if error is not None:
        job.error = status_of(error, during=f"job {job.id}").SerializeToString()
    session.execute(
        update(Chunk)
        .where(Chunk.job_id == job.id, Chunk.state.in_((ChunkState.WAITING, ChunkState.LEASED)))
        .values(state=ChunkState.DROPPED, deadline=None)
    )
    late = max(moment, job.expires) + to_microseconds(LATE_SECONDS)
    chores = [(Chore.TIDY, moment), (Chore.TIDY_LATE, late)]
    if state is not State.SUCCEEDED:
        chores.append((Chore.MARK, moment))
    note(session, job, chores)
    return ending


def note(session: Session, job: Job, chores: Iterable[tuple[Chore, int]]) -> None:
    """Notes what is to be done in the store for a job, and when."""
    chunks = session.scalar(select(func.count()).select_from(Chunk).where(Chunk.job_id == job.id)) or 0
    session.execute(
        insert(Task),
        [
            {"job_id": job.id, "chore": chore, "due": due, "state": job.state, "chunks": chunks, "tries": 0}
            for chore, due in chores
        ],
    )


def remove(session: Session, job: Job, now: float) -> None:
    """Removes a locked job that has ended, and notes that its objects are to be deleted.

    While a stage may still write for it they are deleted but for the marker, and once more at the end of that time.
    """
    moment = to_microseconds(now)
    late = job.expires + to_microseconds(LATE_SECONDS)
    session.execute(delete(Task).where(Task.job_id == job.id))
    chores = [(Chore.DELETE_LATE, max(moment, late))]
    if late > moment:
        chores.append((Chore.DELETE, moment))
    note(session, job, chores)
    session.delete(job)
