"""Pictures as a stream of events: partial ones while they are drawn, then the finished ones."""

import json
import time
from base64 import b64encode
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, Final

from sse_starlette import ServerSentEvent

from smalti.client import Event, check_succeeded
from smalti.services.web.context import WebContext
from smalti.services.web.failures import failure_of
from smalti.services.web.jobs import sse
from smalti.services.web.jobs.following import until
from smalti.services.web.openai.answers import event_fields, files_of, revised_prompt, usage_of
from smalti.services.web.openai.plan import Plan
from smalti.services.web.openai.schema import InputTokens, OutputTokens, Usage
from smalti.services.web.pictures import converted
from smalti.v1.image_pb2 import Preview
from smalti.v1.job_pb2 import Job
from smalti.v1.model_pb2 import Model

PARTIAL: Final = "partial_image"
COMPLETED: Final = "completed"
NOTHING: Final = Usage(
    input_tokens=0,
    input_tokens_details=InputTokens(text_tokens=0),
    output_tokens=0,
    output_tokens_details=OutputTokens(image_tokens=0),
    total_tokens=0,
)


async def stream_of(
    context: WebContext, job: Job, plan: Plan, model: Model
) -> AsyncIterator[ServerSentEvent]:
    """Yields the events of a job until it has ended. An error becomes an event, since the answer has begun."""
    try:
        with context.attendance.attend(job.id):
            async for event in _events(context, job, plan, model):
                yield event
    except Exception as error:
        failure = failure_of(error, during=f"the stream of job {job.id}")
        yield sse.event(json.dumps(failure.openai), name="error")


async def _events(context: WebContext, job: Job, plan: Plan, model: Model) -> AsyncIterator[ServerSentEvent]:
    partials = _Partials(plan.partial_images, model.rows)
    # Without partial pictures, the gateway need not render previews.
    source: AsyncGenerator[Event, None]
    source = context.client.events(job.id) if plan.partial_images else context.client.watch(job.id)
    watched = until(source, context.interrupted)
    async with aclosing(watched) as events:
        async for event in events:
            if isinstance(event, Job):
                job = event
            elif isinstance(event, Preview) and (index := partials.take(event)) is not None:
                file = await converted(event.image.data, plan.output_format, plan.file_quality)
                fields = event_fields(plan, int(time.time()), b64encode(file).decode())
                yield _event(f"{plan.events}.{PARTIAL}", {**fields, "partial_image_index": index})
    check_succeeded(job)
    finished = await files_of(context, job, plan)
    more = {
        "id": job.id,
        "seed": str(job.parameters.seed),
        "safety_identifier": plan.safety_identifier,
        "revised_prompt": revised_prompt(job),
    }
    for number, content in enumerate(finished, 1):
        # The usage of the whole job is in the last event, so that the sum over the events is right.
        usage = usage_of(job, model) if number == len(finished) else NOTHING
        fields = event_fields(plan, int(time.time()), content)
        yield _event(f"{plan.events}.{COMPLETED}", {**fields, **more, "usage": usage.model_dump()})
    yield sse.event("[DONE]")


def _event(kind: str, fields: dict[str, Any]) -> ServerSentEvent:
    return sse.event(json.dumps({"type": kind, **fields}), name=kind)


class _Partials:
    """Chooses the previews that become partial pictures: at equal distances on the way to the whole picture."""

    def __init__(self, count: int, rows: int) -> None:
        """Begins before the first row of pictures with so many rows."""
        self._thresholds = [rows * (index + 1) / (count + 1) for index in range(count)]
        self._next = 0
        self._rows = 0

    def take(self, preview: Preview) -> int | None:
        """Returns the index of the partial picture that a preview becomes; None if it is not due."""
        if self._next >= len(self._thresholds) or preview.rows_drawn < self._thresholds[self._next]:
            return None
        # Previews of several candidates arrive together; each partial picture shows more than the one before.
        if preview.rows_drawn <= self._rows:
            return None
        self._rows = preview.rows_drawn
        index = self._next
        self._next += 1
        return index
