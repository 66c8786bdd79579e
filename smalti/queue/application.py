"""The one Celery application: its queues, and the settings on which the promises of delivery rest.

Celery carries messages and nothing else: no results, no chains, no remote control, no fork. Every queue is reached
through the broker's default exchange by its name, so that there is no binding that could get lost.
"""

import ssl
from typing import Any, Final

from celery import Celery
from kombu.entity import Exchange, Queue

from smalti.errors import InvalidInputError
from smalti.messages import Stage, dead_queue_name, queue_name
from smalti.parameters import Priority
from smalti.queue.settings import BROKER_PREFIX, BrokerSettings

DELIVERY_LIMIT: Final = 20
"""RabbitMQ's own limit of deliveries. It is the outer net behind `BrokerSettings.deliveries`: whatever gives a message
back counts towards it, a connection that was lost as well."""

# Read by kombu: the class that says in which order queues are asked.
QUEUE_ORDER = "smalti.queue.order:MostlyInOrder"


def task_name(stage: Stage) -> str:
    """Returns the name of a stage's Celery task."""
    return f"smalti.{stage}"


def stage_queues(stage: Stage) -> list[str]:
    """Returns the names of the queues that a stage takes from, in their order."""
    if stage is Stage.EVENTS:
        return [queue_name(stage)]
    return [queue_name(stage, priority) for priority in (Priority.INTERACTIVE, Priority.BATCH)]


def uses_rabbitmq(settings: BrokerSettings) -> bool:
    """Says whether the broker is RabbitMQ; otherwise it is Valkey or Redis.

    Raises:
        InvalidInputError: it is neither.
    """
    scheme = settings.url.get_secret_value().partition("://")[0]
    if scheme in ("amqp", "amqps"):
        return True
    if scheme in ("redis", "rediss"):
        return False
    raise InvalidInputError(
        f"{BROKER_PREFIX}URL", "it does not begin with redis://, rediss://, amqp:// or amqps://"
    )


def make_queue(name: str, settings: BrokerSettings, *, dead: str | None = None) -> Queue:
    """Describes a queue.

    Args:
        name: its name.
        settings: say which broker it is on.
        dead: the queue in which RabbitMQ keeps what it gives up; None for a queue that is one itself.
    """
    arguments: dict[str, Any] = {}
    if uses_rabbitmq(settings):
        arguments = {"x-queue-type": "quorum"}
        if dead is not None:
            arguments |= {
                "x-dead-letter-exchange": "",
                "x-dead-letter-routing-key": dead,
                # At least once: a message leaves this queue only when the other one has it. It needs the second line.
                "x-dead-letter-strategy": "at-least-once",
                "x-overflow": "reject-publish",
                "x-delivery-limit": DELIVERY_LIMIT,
            }
    return Queue(name, Exchange(""), routing_key=name, durable=True, queue_arguments=arguments)


def all_queues(settings: BrokerSettings) -> dict[str, Queue]:
    """Describes every queue, by its name."""
    queues: dict[str, Queue] = {}
    for stage in Stage:
        dead = dead_queue_name(stage)
        queues |= {name: make_queue(name, settings, dead=dead) for name in stage_queues(stage)}
        queues[dead] = make_queue(dead, settings)
    return queues


def celery_application(settings: BrokerSettings) -> Celery:
    """Makes the application.

    Raises:
        InvalidInputError: the broker's address, a certificate or a key cannot be used.
    """
    rabbitmq = uses_rabbitmq(settings)
    url = settings.url.get_secret_value()
    # kombu knows TLS by `broker_use_ssl` for RabbitMQ, whose scheme with an s it lacks, and by both for Redis.
    tls = url.startswith(("amqps://", "rediss://"))
    application = Celery("smalti", set_as_current=False, loader="celery.loaders.app:AppLoader")
    application.conf.update(
        broker_url=url.replace("amqps://", "amqp://", 1) if rabbitmq else url,
        broker_use_ssl=_tls(settings, rabbitmq) if tls else False,
        broker_transport_options=_rabbitmq_options(settings) if rabbitmq else _redis_options(settings),
        broker_connection_timeout=settings.timeout,
        broker_heartbeat=settings.heartbeat,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,  # For ever.
        task_queues=list(all_queues(settings).values()),
        task_create_missing_queues=False,
        task_default_queue=queue_name(Stage.EVENTS),
        task_serializer="auth" if settings.signed else "json",
        accept_content=["auth"] if settings.signed else ["json"],
        task_acks_late=True,
        task_acks_on_failure=True,
        task_reject_on_worker_lost=False,  # It is about lost processes of a pool, and there are none.
        task_ignore_result=True,
        # Credit is what runs: one message for each thread, none waiting that another worker could do. RabbitMQ gives
        # credit to each queue by itself: there one more, or batch work would be all that is at hand when a thread is
        # free, since the next interactive message comes after the acknowledgement of the last.
        worker_prefetch_multiplier=2 if rabbitmq else 1,
        # The threads' work goes on without a connection; what comes a second time joins it (`delivery.py`).
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_enable_prefetch_count_reduction=False,
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        # Brokers of today refuse queues that are neither kept nor one's own.
        control_queue_exclusive=True,
        event_queue_exclusive=True,
    )
    if settings.signed:
        _sign(application, settings)
    return application


def _redis_options(settings: BrokerSettings) -> dict[str, Any]:
    # How often it is looked for messages past the visibility timeout: at every tenth of it, at most every ten seconds.
    look_seconds = min(10.0, settings.visibility_timeout / 10)
    return {
        "visibility_timeout": settings.visibility_timeout,
        "unacked_restore_interval": look_seconds,
        "unacked_restore_throttle": 1,
        # One looks at a time. The lock of a worker that is killed meanwhile would else keep all others from it for
        # five minutes; two at the same time do no harm.
        "unacked_mutex_expire": look_seconds,
        "queue_order_strategy": QUEUE_ORDER,
        "priority_steps": [0],
        "socket_timeout": settings.timeout,
        "socket_connect_timeout": settings.timeout,
        "socket_keepalive": True,
        "health_check_interval": 10,
    }


def _rabbitmq_options(settings: BrokerSettings) -> dict[str, Any]:
    return {
        "confirm_publish": True,
        "connect_timeout": settings.timeout,
        "read_timeout": settings.timeout,
        "write_timeout": settings.timeout,
    }


def _tls(settings: BrokerSettings, rabbitmq: bool) -> dict[str, Any]:
    names = {"ca_certs": settings.ca, "certfile": settings.certificate, "keyfile": settings.key}
    prefix = "" if rabbitmq else "ssl_"
    given = {f"{prefix}{name}": str(path) for name, path in names.items() if path is not None}
    given.setdefault(f"{prefix}ca_certs", str(ssl.get_default_verify_paths().cafile))
    return {**given, f"{prefix}cert_reqs": ssl.CERT_REQUIRED}


def _sign(application: Celery, settings: BrokerSettings) -> None:
    """Makes the application sign what it sends, and refuse what nobody trusted has signed."""
    application.conf.update(
        security_key=str(settings.signing_key),
        security_certificate=str(settings.signing_certificate),
        security_cert_store=f"{settings.signing_trusted}/*.pem",
        security_digest="sha256",
    )
    try:
        application.setup_security()
    except Exception as error:
        raise InvalidInputError(
            f"{BROKER_PREFIX}SIGNING_KEY", f"signing cannot be set up: {error}"
        ) from error
