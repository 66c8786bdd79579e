"""Instructions to Celery or kombu in a message. No service sends any, and both obey them before we see a message."""

from typing import Final

from kombu.message import Message as KombuMessage

from smalti.messages import MAX_MESSAGE_BYTES
from smalti.queue.broker.transport import COMPRESSION

MAX_BODY_BYTES: Final = 16 * MAX_MESSAGE_BYTES
"""Largest body that is parsed. JSON in JSON, and a signature around it, make a message several times larger."""

_WORKFLOW: Final = ("callbacks", "chain", "chord", "errbacks", "group")
_HEADERS: Final = (COMPRESSION, "eta", "expires", "timelimit", *_WORKFLOW)


def find_instruction(message: KombuMessage) -> str | None:
    """Returns why a message must not reach Celery; None if it may.

    `compression` would be unpacked to any size, `eta` holds a message in the worker, `expires` drops it without a
    trace, `timelimit` is for other pools, and the parts of a workflow make Celery send tasks that the message names.

    Raises:
        Exception: the body cannot be decoded, which Celery finds too.
    """
    if len(message.body or b"") > MAX_BODY_BYTES:
        return f"the message has a body of {len(message.body)} bytes; at most {MAX_BODY_BYTES} are read"
    headers = message.headers or {}
    for name in _HEADERS:
        if _says_something(headers.get(name)):
            return f"the header {name} is not accepted"
    if "task" not in headers:
        return "the message is not a Celery task"  # Or one of Celery's first protocol, whose body has such fields.
    body = message.decode()
    if isinstance(body, list | tuple) and len(body) == 3 and isinstance(body[2], dict):
        for name in _WORKFLOW:
            if _says_something(body[2].get(name)):
                return f"{name} in the body is not accepted"
    return None


def _says_something(value: object) -> bool:
    """Returns whether a field is set; time limits are a pair."""
    return any(value) if isinstance(value, list | tuple) else value is not None
