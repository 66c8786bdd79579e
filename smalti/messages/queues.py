"""The stages, and the names of their queues."""

from enum import StrEnum
from typing import Annotated, Final

from pydantic import StringConstraints

from smalti.parameters import Priority

QUEUE_PREFIX: Final = "smalti."
"""The beginning of the names of all queues, since other programs may use the same broker."""
HELLO_QUEUE: Final = f"{QUEUE_PREFIX}hello"
"""The queue in which workers say that they are there."""
KEY_LENGTH: Final = 12

RouteKey = Annotated[str, StringConstraints(pattern=rf"^[0-9a-f]{{{KEY_LENGTH}}}$")]
"""Identifies the files that the work of a stage depends on; workers with the same files have the same key."""


class Stage(StrEnum):
    """A step of a job; each stage has its own queues."""

    ENCODE = "encode"
    GENERATE = "generate"
    DECODE = "decode"
    RANK = "rank"
    REFINE = "refine"
    """An optional step after the pictures are chosen."""
    EVENTS = "events"
    """The gateway's step: it receives the events that the other stages send."""


def queue_name(stage: Stage, priority: Priority = Priority.INTERACTIVE, key: RouteKey | None = None) -> str:
    """Returns the queue of a stage and a priority; events have a single queue.

    Args:
        stage: the stage.
        priority: the priority of the work.
        key: the key of the workers that it is for; None for any worker of the stage.
    """
    if stage is Stage.EVENTS:
        return f"{QUEUE_PREFIX}{stage}"
    return (
        f"{QUEUE_PREFIX}{stage}.{priority.value}"
        if key is None
        else f"{QUEUE_PREFIX}{stage}.{key}.{priority.value}"
    )


def dead_queue_name(stage: Stage) -> str:
    """Returns the dead-letter queue of a stage."""
    return f"{QUEUE_PREFIX}{stage}.dead"
