"""Reading the bytes of a request, so that what is wrong with them is said like everything else that is invalid."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.protobuf.unknown_fields import UnknownFieldSet

from smalti.errors import InvalidInputError

MAX_DEPTH: Final = 100
"""Messages inside each other; protobuf reads no more itself."""
MAX_NANOS: Final = 999_999_999
MIN_TIME, MAX_TIME = -62_135_596_800, 253_402_300_799
"""Range of a Timestamp in seconds: the years 1 to 9999."""
MAX_DURATION: Final = 315_576_000_000
"""Largest Duration in seconds, either way: ten thousand years."""


def read_request(deserialize: Callable[[bytes], Any], content: bytes) -> Any:
    """Returns the message that bytes hold.

    Args:
        deserialize: what gRPC would call, such as `CreateImagesRequest.FromString`.
        content: the bytes.

    Raises:
        InvalidInputError: the bytes hold no such message, or a time or duration in it is out of range; names the field.
    """
    try:
        message = deserialize(content)
    except DecodeError:
        kind = getattr(deserialize, "__self__", None)
        field = _find_bad_text(getattr(kind, "DESCRIPTOR", None), content)
        if field:
            raise InvalidInputError(field, "must be text in UTF-8") from None
        raise InvalidInputError("request", "cannot be read; send a message of smalti.v1") from None
    if isinstance(message, Message):
        _check_times(message, "")
    return message


def _find_bad_text(kind: Descriptor | None, content: bytes, depth: int = 0) -> str:
    """Returns the path of the first text in a message that is not UTF-8; empty if it is found nowhere."""
    if kind is None or depth > MAX_DEPTH:
        return ""
    try:
        fields = UnknownFieldSet(Empty.FromString(content))
    except DecodeError:
        return ""
    for each in fields:  # type: ignore[attr-defined]
        field = kind.fields_by_number.get(each.field_number)
        if field is None or not isinstance(each.data, bytes):
            continue
        if field.type == FieldDescriptor.TYPE_STRING:
            try:
                each.data.decode()
            except UnicodeDecodeError:
                return field.name
        elif field.message_type is not None and (
            inner := _find_bad_text(field.message_type, each.data, depth + 1)
        ):
            return field.name if field.message_type.GetOptions().map_entry else f"{field.name}.{inner}"
    return ""


def _check_times(message: Message, path: str) -> None:
    """Raises `InvalidInputError` for the first Timestamp or Duration in a message that is out of its range."""
    if isinstance(message, Timestamp):
        if not (MIN_TIME <= message.seconds <= MAX_TIME and 0 <= message.nanos <= MAX_NANOS):
            raise InvalidInputError(
                path, f"must be a time of the years 1 to 9999, with 0 to {MAX_NANOS} nanos"
            )
    elif isinstance(message, Duration):
        signs = {value > 0 for value in (message.seconds, message.nanos) if value}
        if abs(message.seconds) > MAX_DURATION or abs(message.nanos) > MAX_NANOS or len(signs) > 1:
            raise InvalidInputError(
                path,
                f"must be a duration of at most {MAX_DURATION} s, with nanos of the same sign and up to {MAX_NANOS}",
            )
    else:
        for name, inner in _timed(message):
            _check_times(inner, f"{path}.{name}" if path else name)


def _timed(message: Message) -> Iterator[tuple[str, Message]]:
    """Yields the messages of a message that are, or may hold, a time, with their names."""
    timed = _timed_fields(message.DESCRIPTOR)
    if not timed:
        return
    for field, value in message.ListFields():
        if field.name not in timed:
            continue
        if isinstance(value, Message):
            yield field.name, value
            continue
        values = value.items() if hasattr(value, "items") else enumerate(value)
        for key, inner in values:
            yield f"{field.name}[{key}]", inner


@cache
def _timed_fields(kind: Descriptor) -> frozenset[str]:
    """Returns the fields of a message whose messages are, or may hold, a time."""
    return frozenset(
        field.name
        for field in kind.fields
        if field.message_type is not None and _holds_time(_value_of(field.message_type), frozenset())
    )


def _holds_time(kind: Descriptor | None, above: frozenset[str]) -> bool:
    if kind is None or kind.full_name in above:
        return False
    if kind.full_name in (Timestamp.DESCRIPTOR.full_name, Duration.DESCRIPTOR.full_name):
        return True
    below = above | {kind.full_name}
    return any(
        _holds_time(_value_of(field.message_type), below) for field in kind.fields if field.message_type
    )


def _value_of(kind: Descriptor) -> Descriptor | None:
    """Returns the message that a field of a kind holds: that of its values if it is a map."""
    return kind.fields_by_name["value"].message_type if kind.GetOptions().map_entry else kind
