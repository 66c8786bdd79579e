"""Server-sent events: lines end with LF everywhere, so that simple clients may split at empty lines."""

import json
from collections.abc import AsyncIterator
from typing import Any, Final

from sse_starlette import EventSourceResponse, ServerSentEvent

from smalti.services.web.settings import WebSettings

LINE_END: Final = "\n"


def event(data: str, *, name: str | None = None, id: str | None = None) -> ServerSentEvent:
    """Returns an event with its data as text."""
    # The separator of a response does not reach events that are objects already.
    return ServerSentEvent(data, event=name, id=id, sep=LINE_END)


def retry_after(milliseconds: int) -> ServerSentEvent:
    """Returns the line that says when a browser connects again after a broken stream."""
    return ServerSentEvent(retry=milliseconds, sep=LINE_END)


def compact(value: Any) -> str:
    """Returns a value as JSON without spaces."""
    return json.dumps(value, separators=(",", ":"))


def streamed(events: AsyncIterator[ServerSentEvent], settings: WebSettings) -> EventSourceResponse:
    """Returns the answer that sends events; a comment every 15 seconds shows that it lives."""
    return EventSourceResponse(events, sep=LINE_END, send_timeout=settings.send_timeout)
