"""Setting jobs aside that this version cannot work on, so that they hold up nobody else.

They are tried again every minute, and at once by gateways of another version. Clients see why.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Final

from sqlalchemy import ColumnElement, and_, not_, update

from smalti.errors import UnavailableError
from smalti.services.gateway.database.clock import to_microseconds
from smalti.services.gateway.database.tables import IS_LEASED, Chunk, ChunkState, Job
from smalti.services.gateway.jobs.context import GatewayContext
from smalti.services.gateway.jobs.lifecycle import lock, touch
from smalti.services.gateway.jobs.reading import UnreadableJobError

log = logging.getLogger(__name__)

SET_ASIDE_SECONDS: Final = 60.0
VERSION: Final = version("smalti")[:64]
ALL_VERSIONS: Final = ""


def is_set_aside(now: float) -> ColumnElement[bool]:
    """Returns the condition for jobs that this gateway leaves alone for now."""
    return and_(
        # Repeated literally, so that the partial index is used.
        Job.set_aside_until.is_not(None),
        Job.set_aside_until > to_microseconds(now),
        Job.set_aside_by.in_((VERSION, ALL_VERSIONS)),
    )


def is_not_set_aside(now: float) -> ColumnElement[bool]:
    """Returns the condition for jobs that this gateway works on."""
    return Job.set_aside_until.is_(None) | not_(is_set_aside(now))


@contextmanager
def apart(context: GatewayContext, job_id: str) -> Iterator[None]:
    """Does work on one of several jobs. If it fails, the job is set aside, and the others go on.

    Raises:
        UnavailableError: the block has raised it, since it concerns the others too.
    """
    try:
        yield
    except UnavailableError:
        raise
    except Exception as error:
        set_aside(context, job_id, error)


def set_aside(context: GatewayContext, job_id: str, error: Exception) -> None:
    """Leaves a job alone for a while; its chunks do not count as sent meanwhile."""
    # Only our own text is for clients.
    trouble = (
        error.problem if isinstance(error, UnreadableJobError) else "an internal error; see the gateway's log"
    )
    log.error("the job is set aside: %s", error, exc_info=error, extra={"job": job_id})
    now = context.clock()
    with context.database.write() as session:
        job = lock(session, job_id)
        if job is None:
            return
        is_news = job.trouble != trouble
        others = job.set_aside_until is not None and job.set_aside_by != VERSION
        job.set_aside_by = ALL_VERSIONS if others else VERSION
        job.set_aside_until = to_microseconds(now + SET_ASIDE_SECONDS)
        job.trouble = trouble
        if is_news:
            touch(job)
        session.execute(
            update(Chunk)
            .where(Chunk.job_id == job_id, IS_LEASED)
            .values(state=ChunkState.WAITING, deadline=None)
        )
    if is_news:
        context.events.changed(job_id)


def take_back(job: Job) -> None:
    """Forgets that a locked job was set aside, or waited for workers, since it can be worked on."""
    if job.set_aside_until is not None or job.trouble is not None:
        job.trouble = job.set_aside_until = job.set_aside_by = None
        touch(job)
