"""Reading a message: its size, its version, its fields, and whether its result is still wanted."""

import time
from typing import Annotated, Literal, TypeVar

from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from smalti.errors import ExpiredMessageError, MalformedMessageError, UnknownVersionError
from smalti.messages.envelope import EXTENSIBLE_SINCE, VERSION, check_size
from smalti.messages.events import Failed, Progress, ShardProgress, StageDone
from smalti.messages.hello import Hello
from smalti.messages.routed import RoutedTask
from smalti.messages.shards import (
    DecodeShardTask,
    EncodeShardTask,
    GenerateShardTask,
    RankShardTask,
    RefineShardTask,
)
from smalti.messages.tasks import DecodeTask, EncodeTask, GenerateTask, RankTask, RefineTask
from smalti.validation import first_problem

Task = (
    EncodeTask
    | GenerateTask
    | DecodeTask
    | RankTask
    | RefineTask
    | EncodeShardTask
    | GenerateShardTask
    | DecodeShardTask
    | RankShardTask
    | RefineShardTask
)
Message = Task | StageDone | Progress | ShardProgress | Failed
"""A message of a job."""

_MESSAGE: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="kind")])
_HELLO: TypeAdapter[Hello] = TypeAdapter(Hello)

Kind = TypeVar("Kind", Message, Hello)


def parse(text: str | bytes, *, now: float | None = None) -> Message:
    """Reads a message of a job.

    Args:
        text: the message as JSON.
        now: the current time in seconds since 1970; None reads the clock.

    Raises:
        OversizedMessageError: the text is too large; it was not parsed.
        MalformedMessageError: the text is not JSON, or does not match its version of the messages.
        UnknownVersionError: the message has a newer version than this code knows.
        ExpiredMessageError: it is a task whose result is no longer wanted.
    """
    message = _read(_MESSAGE, text)
    now = time.time() if now is None else now
    if isinstance(message, RoutedTask) and message.late_at <= now:
        raise ExpiredMessageError(message, now - message.expires)
    return message


def parse_hello(text: str | bytes) -> Hello:
    """Reads what a worker says of itself; raises as `parse` does, but for `ExpiredMessageError`."""
    return _read(_HELLO, text)


def _read(adapter: TypeAdapter[Kind], text: str | bytes) -> Kind:
    check_size(text)
    try:
        version = from_json(text)["version"]
    except (ValueError, TypeError, KeyError):
        raise MalformedMessageError("the message must be a JSON object with a version") from None
    if type(version) is not int or version < 1:
        raise MalformedMessageError("version: must be a positive integer")
    if version > VERSION:
        raise UnknownVersionError(version, VERSION)
    try:
        # A later release may add fields to messages of a version that is extensible.
        extra: Literal["forbid"] | None = "forbid" if version < EXTENSIBLE_SINCE else None
        return adapter.validate_json(text, strict=True, extra=extra)
    except ValidationError as error:
        problem = first_problem(error, show_value=False)
        raise MalformedMessageError(f"{problem.field or 'message'}: {problem.message}") from None
