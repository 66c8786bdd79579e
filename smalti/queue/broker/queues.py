"""The queues: their names, and how each is declared."""

import re
from typing import Any, ClassVar, Final

from kombu.entity import Exchange, Queue

from smalti.errors import InvalidInputError
from smalti.messages import (
    HELLO_QUEUE,
    KEY_LENGTH,
    QUEUE_PREFIX,
    RouteKey,
    Stage,
    dead_queue_name,
    queue_name,
)
from smalti.parameters import Priority
from smalti.queue.held.holding import split_held
from smalti.queue.settings import BROKER_PREFIX, BrokerSettings, Work

DELIVERY_LIMIT: Final = 20
"""RabbitMQ's own limit of deliveries, a safety net behind `BrokerSettings.deliveries`: every requeue counts towards it,
and so does a lost connection."""

CONSUMER_TIMEOUT_SECONDS: Final = 24 * 3600
"""Time after which RabbitMQ takes a message back that is not acknowledged, instead of half an hour. A worker that hangs
is found by its heartbeat, its engine, or the lease of the gateway. RabbitMQ before 3.12 ignores it."""
DEAD_DELIVERY_LIMIT: Final = 2_000_000_000
"""No limit for dead letters: each look at them counts as a delivery, and RabbitMQ 4 drops a message after 20."""
UNUSED_SECONDS: Final = 14 * 24 * 3600
"""Time after which a keyed queue is deleted that nobody consumes, or, with Valkey, that nobody sends to: its revision
is gone. It is longer than any job may take."""
UNUSED_HELD_SECONDS: Final = 24 * 3600
"""Time after which RabbitMQ deletes a queue of messages that were held back; each stays there for seconds."""
HELLO_SECONDS: Final = 60
"""Time after which RabbitMQ drops a hello that no gateway has read."""
MAX_HELLOS: Final = 10_000
"""Hellos that a broker keeps; older ones are dropped."""

_PRIORITIES: Final = "|".join(priority.value for priority in Priority)
_WORK: Final = re.compile(
    rf"{re.escape(QUEUE_PREFIX)}(?P<stage>[a-z]+)(?:\.[0-9a-f]{{{KEY_LENGTH}}})?\.(?:{_PRIORITIES})"
)


def task_name(stage: Stage) -> str:
    """Returns the name of a stage's Celery task."""
    return f"smalti.{stage}"


def stage_queues(
    stage: Stage, key: RouteKey | None = None, *, old: bool = True, work: Work = "all"
) -> list[str]:
    """Returns the queues that a service consumes, interactive work first.

    Args:
        stage: the stage of the service.
        key: its key; None for a service without one, such as the gateway.
        old: whether it also consumes the queues without a key.
        work: which priorities it consumes.
    """
    if stage is Stage.EVENTS:
        return [queue_name(stage), HELLO_QUEUE]
    keys = [*([] if key is None else [key]), *([None] if old or key is None else [])]
    return [
        queue_name(stage, priority, each)
        for priority in (Priority.INTERACTIVE, Priority.BATCH)
        if work in ("all", priority.value)
        for each in keys
    ]


def stage_of(name: str) -> Stage | None:
    """Returns the stage whose queue this is, keyed or not; None for a dead-letter queue and for those of others."""
    if name in stage_queues(Stage.EVENTS):
        return Stage.EVENTS
    found = _WORK.fullmatch(name)
    return Stage(found["stage"]) if found and found["stage"] in list(Stage) else None


def is_keyed(name: str) -> bool:
    """Returns whether a queue is for the workers of a key."""
    stage = stage_of(name)
    return stage is not None and name not in stage_queues(stage)


def uses_rabbitmq(settings: BrokerSettings) -> bool:
    """Returns True for RabbitMQ, False for Valkey or Redis.

    Raises:
        InvalidInputError: the URL has another scheme.
    """
    scheme = settings.url.get_secret_value().partition("://")[0]
    if scheme in ("amqp", "amqps"):
        return True
    if scheme in ("redis", "rediss"):
        return False
    raise InvalidInputError(f"{BROKER_PREFIX}URL", "must begin with redis://, rediss://, amqp:// or amqps://")


class DeadLetteringQueue(Queue):
    """A queue that is declared together with its dead-letter queue: RabbitMQ, too, moves messages there."""

    attrs: ClassVar[Any] = (*Queue.attrs, ("dead", None))  # type: ignore[misc]
    dead: Queue | None

    @property
    def can_cache_declaration(self) -> bool:  # type: ignore[override]
        """Whether a connection declares it only once, and not before each message.

        kombu declares every queue again that expires. One of held messages needs that, having no consumers. One of
        work does not: it expires only where nobody consumes, and a message for a queue that is gone is returned, after
        which the publisher connects and declares again.
        """
        return self.dead is not None or bool(super().can_cache_declaration)

    def declare(self, nowait: bool = False, channel: Any = None) -> str:
        """Declares both, the dead-letter queue first."""
        if self.dead is not None:
            self.dead(channel or self.channel).declare(nowait=nowait)
        return str(super().declare(nowait=nowait, channel=channel))


def declared(name: str, settings: BrokerSettings) -> Queue:
    """Returns the declaration of a queue.

    Args:
        name: the name of any queue of the system.
        settings: decide which broker it is declared for.

    Raises:
        ValueError: the system has no queue of this name.
    """
    rabbitmq = uses_rabbitmq(settings)
    origin, delay = split_held(name)
    if delay is not None and stage_of(origin) is not None:
        return _queue(name, _held_arguments(origin, delay) if rabbitmq else {})
    if name in _DEAD:
        return _queue(name, _arguments(**{"x-delivery-limit": DEAD_DELIVERY_LIMIT}) if rabbitmq else {})
    if name == HELLO_QUEUE:
        return _queue(name, _HELLO_ARGUMENTS if rabbitmq else {})
    stage = stage_of(name)
    if stage is None:
        raise ValueError(f"there is no queue {name}")
    dead = declared(dead_queue_name(stage), settings)
    return _queue(name, _work_arguments(name, dead.name) if rabbitmq else {}, dead)


def all_queues(settings: BrokerSettings) -> dict[str, Queue]:
    """Returns the declarations of the queues that every system has, by name: those without a key."""
    names = [*_DEAD, *(name for stage in Stage for name in stage_queues(stage))]
    return {name: declared(name, settings) for name in names}


_DEAD: Final = tuple(map(dead_queue_name, Stage))


def _queue(name: str, arguments: dict[str, Any], dead: Queue | None = None) -> Queue:
    return DeadLetteringQueue(
        name, Exchange(""), routing_key=name, durable=True, queue_arguments=arguments, dead=dead
    )


def _arguments(**others: Any) -> dict[str, Any]:
    return {
        "x-queue-type": "quorum",
        # A queue that a policy limits refuses what comes, and drops nothing.
        "x-overflow": "reject-publish",
        "x-consumer-timeout": CONSUMER_TIMEOUT_SECONDS * 1000,
        **others,
    }


def _moving_to(other: str, **others: Any) -> dict[str, Any]:
    """Returns the arguments of a queue whose messages RabbitMQ moves to another one in the end."""
    return _arguments(
        **{
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": other,
            # A message leaves this queue only when the other one has it; requires reject-publish.
            "x-dead-letter-strategy": "at-least-once",
            **others,
        }
    )


def _work_arguments(name: str, dead: str) -> dict[str, Any]:
    """Returns what RabbitMQ must know of a queue of work or events."""
    expires = {"x-expires": UNUSED_SECONDS * 1000} if is_keyed(name) else {}
    return _moving_to(dead, **{"x-delivery-limit": DELIVERY_LIMIT}, **expires)


def _held_arguments(origin: str, delay: int) -> dict[str, Any]:
    """Returns what RabbitMQ must know of a queue from which messages go back after a delay in milliseconds."""
    return _moving_to(origin, **{"x-message-ttl": delay, "x-expires": UNUSED_HELD_SECONDS * 1000})


_HELLO_ARGUMENTS: Final = _arguments(
    **{
        "x-overflow": "drop-head",
        "x-max-length": MAX_HELLOS,
        "x-message-ttl": HELLO_SECONDS * 1000,
    }
)
