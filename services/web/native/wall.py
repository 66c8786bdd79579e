"""The feed of the wall: `SMALTI_WEB_WALL` switches it on."""

from collections.abc import AsyncIterator
from contextlib import aclosing

from fastapi import APIRouter
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.responses import Response

from smalti.services.web.context import Context, WebContext, with_key
from smalti.services.web.failures import failure_of
from smalti.services.web.jobs import Walls, sse
from smalti.services.web.jobs.following import until

wall_router = APIRouter(prefix="/api", tags=["Smalti"], dependencies=[with_key])


@wall_router.get("/wall/events", response_class=EventSourceResponse)
async def get_wall(context: Context) -> Response:
    """Streams every mosaic that is being drawn right now. It never ends by itself.

    * `wall`: all drawings: `{"drawings": [{"id", "rows", "columns", "first", "count"}]}`; what else was shown is gone.
      `id` is not that of the job. `prompt` is there if the operator shows it.
    * `drawing`: a new one, as in `wall`.
    * `rows`, `preview`: as for a job, with the `id` of the drawing. Previews are small.
    * `ended`: `{"id", "state", "chosen"}`: a drawing has ended; `chosen` are its best candidates, the best first.
    """
    assert context.walls is not None
    # Before the answer begins, so that a key that is not valid is a 401.
    await context.catalogue.models()
    return sse.streamed(_events(context, context.walls), context.settings)


async def _events(context: WebContext, walls: Walls) -> AsyncIterator[ServerSentEvent]:
    try:
        async with aclosing(until(walls.visit(), context.drained)) as events:
            async for event in events:
                yield event
    except Exception as error:
        yield sse.event(sse.compact(failure_of(error, during="the wall").problem), name="error")
