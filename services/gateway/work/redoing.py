"""Makes chunks of candidates again whose objects are lost."""

import logging
from collections.abc import Sequence

from sqlalchemy import delete

from smalti.services.gateway.database.clock import to_microseconds
from smalti.services.gateway.database.tables import ChunkState, ScoredCandidate
from smalti.services.gateway.jobs.context import GatewayContext
from smalti.services.gateway.jobs.lifecycle import (
    chunks_of,
    count_refused,
    forget_choice,
    lock_open,
    reset,
    touch,
)

log = logging.getLogger(__name__)


def redo(context: GatewayContext, job_id: str, numbers: Sequence[int], problem: str, *damaged: str) -> None:
    """Makes chunks again from the start.

    Args:
        context: shared by the parts of the gateway.
        job_id: the job.
        numbers: the chunks.
        problem: why.
        damaged: keys of damaged objects, which are deleted; otherwise the stage that made them would find them and
            skip the work.
    """
    log.warning("chunks %s must be made again: %s", list(numbers), problem, extra={"job": job_id})
    context.store.delete(*damaged)
    now = to_microseconds(context.clock())
    with context.database.write() as session:
        job = lock_open(session, job_id)
        if job is None:
            return
        forget_choice(session, job)
        for chunk in chunks_of(session, job):
            if chunk.number not in numbers:
                continue
            reset(job, chunk)
            chunk.state = ChunkState.LEASED
            chunk.sent = chunk.begun = True  # Counts as an attempt, so that the job fails in the end.
            chunk.deadline = now
            chunk.problem = problem
            candidates = ScoredCandidate.candidate.between(chunk.first, chunk.first + chunk.count - 1)
            session.execute(delete(ScoredCandidate).where(ScoredCandidate.job_id == job_id, candidates))
        count_refused(session, job)
        touch(job)
    context.events.changed(job_id)
