"""A worker and its publisher on a real broker, and access to the content of the queues."""

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import SecretStr

from harness.servers import RabbitMQServer, Server
from harness.signing import certificate
from harness.waiting import WAIT, wait_until
from smalti.messages import (
    Chunk,
    EncodeTask,
    Message,
    RouteKey,
    Stage,
    dead_queue_name,
    parse,
)
from smalti.parameters import SamplingParameters
from smalti.queue import (
    BrokerPublisher,
    BrokerSettings,
    Consumer,
    Delivery,
    HelloHandler,
    Outcome,
    celery_application,
    consume,
)
from smalti.queue.broker.queues import all_queues, declared
from smalti.registry.folder import ModelFolder
from smalti.storage import ObjectStore

Item = TypeVar("Item")

BROKERS = ["valkey", "rabbitmq"] if RabbitMQServer.installed() or "CI" in os.environ else ["valkey"]
"""The fixtures of the brokers. Without RabbitMQ on a machine its tests are left out; in CI they fail instead."""
HARMLESS_WARNINGS = (
    # Celery's warning at a reconnect, for pools that can cancel tasks.
    "ignore::celery.exceptions.CPendingDeprecationWarning",
    # py-amqp leaves the socket of a failed connection attempt to the garbage collector.
    "ignore::pytest.PytestUnraisableExceptionWarning",
)


def settings_for(server: Server, **changes: Any) -> BrokerSettings:
    """Returns settings for a broker with short times, so that tests need not wait."""
    quick: dict[str, Any] = {
        "timeout": 5.0,
        "visibility_timeout": 6.0,
        "retry_first": 0.05,
        "retry_max": 0.2,
        "drain": 10.0,
    }
    return BrokerSettings(url=SecretStr(server.url), **{**quick, **changes})


def signing_as(server: Server, trusted: Path, name: str, **changes: Any) -> BrokerSettings:
    """Returns the settings of a service that signs; its certificate is put among the trusted ones, in a folder."""
    trusted.mkdir(exist_ok=True)
    key, public = trusted / f"{name}.key", trusted / f"{name}.pem"
    if not public.exists():
        certificate(trusted, name)
    return settings_for(
        server, signing_key=key, signing_certificate=public, signing_trusted=trusted, **changes
    )


def patient(settings: BrokerSettings) -> BrokerSettings:
    """Returns settings with a long timeout, for access by the test itself."""
    return settings.model_copy(update={"timeout": WAIT})


def clear(settings: BrokerSettings) -> None:
    """Declares all queues and empties them."""
    with celery_application(patient(settings)).connection_for_write() as connection:
        for queue in all_queues(settings).values():
            # Not deleted: RabbitMQ 3.10 does not always recover a queue that was deleted and declared again.
            bound = queue(connection.channel())
            bound.declare()
            bound.purge()
        if settings.url.get_secret_value().startswith("redis"):
            connection.channel().client.flushdb()


def read_all(settings: BrokerSettings, queue: str) -> list[tuple[str, dict[str, Any]]]:
    """Takes all messages of a queue; returns the text of each, or its body if it is not a task, and its headers."""
    found = []
    with celery_application(patient(settings)).connection_for_write() as connection:
        bound = declared(queue, settings)(connection.channel())
        bound.declare()
        while message := bound.get(accept=["application/json", "application/data"], no_ack=True):
            body = message.body
            with contextlib.suppress(Exception):
                body = message.decode()[0][0]
            found.append((body, dict(message.headers)))
    return found


def events(settings: BrokerSettings) -> list[Message]:
    """Takes all events."""
    return [parse(text) for text, _ in read_all(settings, "smalti.events")]


def dead(settings: BrokerSettings, stage: Stage = Stage.ENCODE) -> list[tuple[str, dict[str, Any]]]:
    """Takes all dead letters of a stage."""
    return read_all(settings, dead_queue_name(stage))


def task(
    job: str = "j1", prompt: str = "a cat", *, model: ModelFolder | None = None, **changes: Any
) -> EncodeTask:
    """Returns a task for the encoder.

    Args:
        job: the job's identifier.
        prompt: the prompt.
        model: the model that is asked for, with its sampling parameters; None asks for a model that does not exist.
        changes: fields of the task.
    """
    fields: dict[str, Any] = {
        "job": job,
        "expires": time.time() + 3600,
        "model": model.name if model else "tiny",
        "revision": model.revision if model else "r",
        "prompt": prompt,
        "seed": 1,
        "sampling": model.sampling if model else SamplingParameters(),
        "chunks": (Chunk(chunk=0, candidates=(0, 1)),),
        **changes,
    }
    fields.setdefault("candidates_in_job", sum(len(chunk.candidates) for chunk in fields["chunks"]))
    return EncodeTask(**fields)


def gather(read: Callable[[], Iterable[Item]], enough: Callable[[list[Item]], bool]) -> list[Item]:
    """Reads repeatedly until enough was found; returns everything found."""
    found: list[Item] = []

    def look() -> bool:
        found.extend(read())
        return enough(found)

    wait_until(look)
    return found


class QueueHarness:
    """A publisher and a worker in this process, and the outcomes of the messages."""

    def __init__(self, settings: BrokerSettings) -> None:
        self.settings = settings
        self.publisher = BrokerPublisher(settings)
        self.begun: list[str] = []
        self.outcomes: Counter[Outcome] = Counter()
        self.consumer: Consumer | None = None

    def work(
        self,
        handler: Callable[[Delivery], Iterable[Message]] | None = None,
        *,
        concurrency: int = 4,
        shards: int = 2,
        stage: Stage = Stage.ENCODE,
        store: ObjectStore | None = None,
        key: RouteKey | None = None,
        hear: HelloHandler = lambda hello: None,
    ) -> Consumer:
        """Starts the worker; by default, its handler returns the event that the work is done."""

        def handle(delivery: Delivery) -> Iterable[Message]:
            self.begun.append(delivery.message.job)
            if handler:
                return handler(delivery)
            assert isinstance(delivery.message, EncodeTask)
            return [delivery.message.done()]

        self.consumer = consume(
            stage,
            handle,
            concurrency=concurrency,
            shards=shards,
            publisher=self.publisher,
            store=store,
            settings=self.settings,
            observer=lambda handled: self.outcomes.update([handled.completion.outcome]),
            key=key,
            hear=hear,
        )
        self.consumer.start()
        assert self.consumer.wait_until_ready(WAIT)
        return self.consumer

    def wait_for(self, outcome: Outcome, count: int = 1) -> None:
        """Waits until `count` deliveries have had this outcome."""
        wait_until(lambda: self.outcomes[outcome] >= count)

    def stop(self) -> None:
        """Stops the worker, and closes the publisher."""
        if self.consumer:
            self.consumer.stop(5)
        self.publisher.close()
