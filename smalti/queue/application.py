"""The Celery application: its queues, and the settings on which the delivery guarantees rest.

Celery only carries messages: no results, chains, remote control or forks. Every queue is addressed by its name through
the broker's default exchange, so there is no binding to lose.
"""

import re
import ssl
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

import amqp
import redis
from celery import Celery

from smalti.errors import BrokerUnavailableError, InvalidInputError
from smalti.messages import QUEUE_PREFIX, Stage, queue_name
from smalti.network import check_key_pair, check_plaintext
from smalti.queue.broker.queues import all_queues, declared, uses_rabbitmq
from smalti.queue.settings import BROKER_PREFIX, BrokerSettings
from smalti.queue.signing import use_signatures

# Kombu imports this class, which decides the order in which queues are polled.
QUEUE_ORDER = "smalti.queue.broker.order:InteractiveFirst"


def celery_application(settings: BrokerSettings, queues: Iterable[str] = ()) -> Celery:
    """Creates the application.

    Args:
        settings: the broker, and how messages are signed.
        queues: names of queues that it consumes, beside those that every system has.

    Raises:
        InvalidInputError: the broker's URL, a certificate or a key is invalid.
    """
    rabbitmq = uses_rabbitmq(settings)
    url = settings.url.get_secret_value()
    # kombu has no amqps scheme: for RabbitMQ, `broker_use_ssl` alone turns TLS on; for Redis both do.
    tls = url.startswith(("amqps://", "rediss://"))
    _check_url(url)
    application = Celery("smalti", set_as_current=False, loader="celery.loaders.app:AppLoader")
    application.conf.update(
        broker_transport=f"smalti.queue.broker.transport:{'Rabbit' if rabbitmq else 'Valkey'}Transport",
        broker_url=url.replace("amqps://", "amqp://", 1) if rabbitmq else url,
        broker_use_ssl=_tls(settings, rabbitmq) if tls else False,
        broker_transport_options=_rabbitmq_options(settings) if rabbitmq else _redis_options(settings),
        broker_connection_timeout=settings.timeout,
        broker_heartbeat=settings.heartbeat,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,  # Without limit.
        task_queues=list(
            (all_queues(settings) | {name: declared(name, settings) for name in queues}).values()
        ),
        task_create_missing_queues=False,
        task_default_queue=queue_name(Stage.EVENTS),
        task_serializer="auth" if settings.signed else "json",
        accept_content=["auth"] if settings.signed else ["json"],
        task_acks_late=True,
        task_acks_on_failure=True,
        task_reject_on_worker_lost=False,  # Concerns lost processes of a pool; this pool has threads.
        task_ignore_result=True,
        # Prefetch what runs: one message for each thread, and none that another worker could take. RabbitMQ counts for
        # each queue separately, and delivers the next interactive message only after the last was acknowledged. With a
        # prefetch of one, a free thread would find nothing but batch work; hence two.
        worker_prefetch_multiplier=2 if rabbitmq else 1,
        # Threads keep working without a connection; a second delivery of the work joins the first (`delivery.py`).
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_enable_prefetch_count_reduction=False,
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        # Newer brokers refuse queues that are neither durable nor exclusive.
        control_queue_exclusive=True,
        event_queue_exclusive=True,
    )
    if settings.signed:
        use_signatures(settings)
    return application


def broker_address(settings: BrokerSettings) -> str:
    """Returns the address of the broker without the password."""
    parts = urlsplit(settings.url.get_secret_value())
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def check_broker(settings: BrokerSettings, seconds: float) -> str:
    """Connects to the broker once; returns its address without the password.

    Raises:
        InvalidInputError: a setting is invalid, or the broker refuses the user and password.
        BrokerUnavailableError: the broker does not answer.
    """
    with celery_application(settings).connection_for_write() as connection:
        address = broker_address(settings)
        try:
            connection.ensure_connection(max_retries=1, timeout=seconds, reraise_as_library_errors=False)
            connection.default_channel  # noqa: B018 - Valkey answers nothing before.
        except (redis.AuthenticationError, amqp.AccessRefused) as error:
            raise InvalidInputError(
                f"{BROKER_PREFIX}URL", f"{address} refuses the user or the password ({error})"
            ) from None
        except (*connection.connection_errors, OSError) as error:
            raise BrokerUnavailableError(f"{address} does not answer: {error}") from None
    return address


def _redis_options(settings: BrokerSettings) -> dict[str, Any]:
    # Interval between checks for messages past the visibility timeout: a tenth of it, at most ten seconds.
    check_seconds = min(10.0, settings.visibility_timeout / 10)
    return {
        "visibility_timeout": settings.visibility_timeout,
        # Others that use this database may have another visibility timeout, and would take messages back by theirs.
        "unacked_key": f"{QUEUE_PREFIX}unacked",
        "unacked_index_key": f"{QUEUE_PREFIX}unacked_index",
        "unacked_mutex_key": f"{QUEUE_PREFIX}unacked_mutex",
        "unacked_restore_interval": check_seconds,
        "unacked_restore_throttle": 1,
        # One worker checks at a time. By default, the lock of a worker that is killed meanwhile would keep the others
        # from checking for five minutes; two checks at the same time do no harm.
        "unacked_mutex_expire": check_seconds,
        # Valkey's channels are the same in all databases, so the name of ours begins with the number of the database.
        "fanout_prefix": True,
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
    """Returns the TLS options; without `SMALTI_BROKER_CA` the authorities of the system are trusted.

    Raises:
        InvalidInputError: a file cannot be used; names the variable.
    """
    _check_files(settings)
    names = {"ca_certs": settings.ca, "certfile": settings.certificate, "keyfile": settings.key}
    prefix = "" if rabbitmq else "ssl_"
    given = {f"{prefix}{name}": str(path) for name, path in names.items() if path is not None}
    return {**given, f"{prefix}cert_reqs": ssl.CERT_REQUIRED}


def _check_files(settings: BrokerSettings) -> None:
    if settings.ca is not None:
        try:
            ssl.create_default_context(cafile=settings.ca)
        except OSError as error:
            raise InvalidInputError(
                f"{BROKER_PREFIX}CA", f"{settings.ca} cannot be used: {error.strerror or error}"
            ) from None
    if settings.certificate is None or settings.key is None:
        if settings.certificate or settings.key:
            raise InvalidInputError(
                f"{BROKER_PREFIX}CERTIFICATE",
                f"set {BROKER_PREFIX}CERTIFICATE and {BROKER_PREFIX}KEY, or neither",
            )
        return
    check_key_pair(BROKER_PREFIX, settings.certificate, settings.key)


def _check_url(url: str) -> None:
    """Raises `InvalidInputError` if a URL names several brokers, or another machine without TLS."""
    variable = f"{BROKER_PREFIX}URL"
    if ";" in url:
        raise InvalidInputError(variable, "must name one broker, without a semicolon")
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        parts.port  # noqa: B018 - Raises for one that is no number, or too large.
    except ValueError:
        raise InvalidInputError(variable, "is not a valid URL; check its host and port") from None
    if parts.scheme in ("redis", "rediss") and not re.fullmatch(r"/?|/\d{1,4}/?", parts.path):
        raise InvalidInputError(
            variable, "must end with the number of a database, such as /0, and without a further path"
        )
    if parts.scheme not in ("amqps", "rediss"):
        # Without a host kombu connects to this machine.
        check_plaintext(host or "localhost", variable, f"is not {parts.scheme}s://")
