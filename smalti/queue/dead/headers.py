"""The headers that a message gets in a dead-letter queue. Its body, and with it its signature, stays as it was."""

import time
from collections.abc import Mapping
from typing import Any, Final

REASON: Final = "smalti_why_dead"
"""The reason in words."""
KIND: Final = "smalti_dead_kind"
"""The reason for programs: a `FailureReason`, or one of the kinds below."""
ORIGIN: Final = "smalti_dead_from"
"""The queue that it was given up in."""
DIED: Final = "smalti_dead_at"
"""The Unix time."""

UNREADABLE: Final = "unreadable"
"""It is no message, or it was not accepted, such as an unsigned one."""
VERSION: Final = "version"
"""No service reads its version."""
BROKER: Final = "broker"
"""RabbitMQ has moved it by itself, after too many deliveries or by a policy."""
OLD_NAME: Final = "old-name"
"""It is not dead, but waits in a queue with a name of version 0.1."""

MAX_REASON_LENGTH: Final = 500
_OURS: Final = (REASON, KIND, ORIGIN, DIED)


def with_death(headers: Mapping[str, Any], *, why: str, kind: str, origin: str) -> dict[str, Any]:
    """Returns the headers of a message with why, in which queue and when it was given up."""
    return {
        **without_death(headers),
        REASON: why[:MAX_REASON_LENGTH],
        KIND: kind,
        ORIGIN: origin,
        DIED: time.time(),
    }


def without_death(headers: Mapping[str, Any], *others: str) -> dict[str, Any]:
    """Returns the headers as they were before, without those of RabbitMQ and the other ones that are named."""
    return {
        name: value
        for name, value in headers.items()
        if name not in _OURS and name not in others and not name.startswith("x-")
    }
