"""The events of a job: new states, new rows, and previews of unfinished pictures."""

from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Final

from sse_starlette import ServerSentEvent
from starlette.requests import Request

from smalti.client import Event
from smalti.errors import InvalidInputError
from smalti.services.web.context import WebContext
from smalti.services.web.failures import failure_of
from smalti.services.web.jobs import sse
from smalti.services.web.jobs.following import until
from smalti.services.web.native.conversion import job_object
from smalti.v1.generator_pb2 import RowsDrawn
from smalti.v1.job_pb2 import Job

RECONNECT_MILLISECONDS: Final = 1000
"""Time after which a browser connects again after a broken stream."""


def parse_last_id(last_id: str | None) -> int | None:
    """Returns the version of the last event that a client has; None if it has none.

    Raises:
        InvalidInputError: the id is not that of an event.
    """
    if not last_id:
        return None
    if not (last_id.isascii() and last_id.isdigit() and int(last_id[:20]) < 2**63):
        raise InvalidInputError(
            "last-event-id", f"must be the id of an event of this job, not {last_id!r:.40}"
        )
    return int(last_id)


async def events_of(
    request: Request, context: WebContext, job_id: str, since: int | None
) -> AsyncIterator[ServerSentEvent]:
    """Yields the events of a job until it has ended. An error becomes an event, since the answer has begun."""
    yield sse.retry_after(RECONNECT_MILLISECONDS)
    try:
        watched = until(context.client.events(job_id, since_version=since), context.drained)
        async with aclosing(watched) as events:
            async for event in events:
                yield _event(request, context, event)
    except Exception as error:
        failure = failure_of(error, during=f"the events of job {job_id}")
        yield sse.event(sse.compact(failure.problem), name="error")


def _event(request: Request, context: WebContext, event: Event) -> ServerSentEvent:
    if isinstance(event, Job):
        # Only states have ids: rows and previews are sent again after a reconnection, as far as they are still needed.
        return sse.event(sse.compact(job_object(request, context, event)), name="job", id=str(event.version))
    if isinstance(event, RowsDrawn):
        runs = [
            {"candidate": run.candidate, "start": run.start, "tokens": list(run.tokens)} for run in event.runs
        ]
        return sse.event(sse.compact({"runs": runs}), name="rows")
    preview = {
        "candidate": event.candidate,
        "rows_drawn": event.rows_drawn,
        "media_type": event.image.media_type,
        "data": b64encode(event.image.data).decode(),
    }
    return sse.event(sse.compact(preview), name="preview")
