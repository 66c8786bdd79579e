"""A service's process, from reading its settings to its exit code.

`run` does the same for every service: it reads the settings, loads the model, starts gRPC and the consumer, and serves
until a signal stops the process or a vital part of it dies. A `Service` describes what is particular to one service.
"""

import asyncio
import contextlib
import faulthandler
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NoReturn, Protocol, Self, runtime_checkable

from smalti.devices import check_flags
from smalti.entrance import begin, signals, streams, variables
from smalti.errors import (
    DatabaseUnavailableError,
    EngineFailedError,
    InvalidInputError,
    ModelError,
    ModelNotFoundError,
    StoreUnavailableError,
)
from smalti.messages import ROUTES_SINCE, MessageSettings, Stage, message_settings
from smalti.queue import (
    QUEUE_ENTRY,
    BrokerPublisher,
    BrokerSettings,
    Consumer,
    Handler,
    HelloHandler,
    broker_address,
    broker_settings,
    consume,
)
from smalti.rpc.identity import Authenticate, system_only
from smalti.rpc.places import CallKinds
from smalti.rpc.server import Register, Server, serve
from smalti.rpc.settings import RpcSettings, rpc_settings
from smalti.rpc.tls import server_credentials
from smalti.service import failpoints
from smalti.service.engine import Engine
from smalti.service.serving import HelloThread, Serving
from smalti.service.settings import ServiceSettings, service_settings
from smalti.service.telemetry import Telemetry
from smalti.service.telemetry import start as start_telemetry
from smalti.starting import without_collection
from smalti.storage import ObjectStore, StoreCheck, open_store

log = logging.getLogger(__name__)

DONE, DIED, UNUSABLE = 0, 1, 2
"""Exit codes: drained; engine or consumer dead, or the drain hung; invalid setting or model."""

STORE_HEALTH = "store"
"""Name in health checks of the process together with its object store."""
WATCH_SECONDS = 0.1
"""Interval between liveness checks."""
DEAD_SECONDS = 5.0
"""Time for a process whose engine has died to answer its callers; then the process is ended."""


@runtime_checkable
class BackgroundTask(Protocol):
    """Something else that runs in the process, such as an HTTP server."""

    @property
    def healthy(self) -> bool:
        """Whether the task works; the process ends if it does not. Must not block."""
        ...

    async def start(self) -> None:
        """Starts the task; raises `InvalidInputError` if one of its settings is invalid."""
        ...

    async def stop(self, grace: float) -> None:
        """Finishes what has begun, takes nothing new, and stops within the given seconds."""
        ...


@dataclass(frozen=True)
class Process:
    """The shared part of every process: its settings, the broker and the store."""

    name: str
    settings: ServiceSettings
    rpc: RpcSettings
    broker: BrokerSettings
    messages: MessageSettings
    publisher: BrokerPublisher
    store: ObjectStore
    telemetry: Telemetry
    report: dict[str, str] = field(default_factory=dict)
    """What was found at the start, by what was asked for; the log has it in one line. `smalti doctor` asks the same."""

    @classmethod
    def load(cls, name: str) -> Self:
        """Reads the settings from the environment and starts logging; connects to nothing.

        Raises:
            InvalidInputError: a setting is invalid; names the variable.
        """
        telemetry = start_telemetry(name)
        if ignored := variables.ignored():
            log.info("variables of other programs are ignored: %s", ", ".join(each.name for each in ignored))
        failpoints.arm()
        settings, rpc, broker, messages = (
            service_settings(), rpc_settings(), broker_settings(), message_settings(),
        )  # fmt: skip
        server_credentials(rpc)
        if messages.write < ROUTES_SINCE and not broker.old_queues:
            raise InvalidInputError(
                "SMALTI_BROKER_OLD_QUEUES",
                f"must be 1 unless SMALTI_MESSAGES_WRITE is 3: work of version {messages.write} is in no other queues",
            )
        return cls(
            name=name,
            settings=settings,
            rpc=rpc,
            broker=broker,
            messages=messages,
            publisher=BrokerPublisher(broker),
            store=telemetry.store(open_store()),
            telemetry=telemetry,
        )


@dataclass(frozen=True)
class Service:
    """The parts that differ between services."""

    register: Register
    """Adds the gRPC services to the server."""
    handler: Handler | None = None
    """Handles the messages of the service's queues; None for a process that takes none."""
    concurrency: int = 1
    """Messages that are handled at the same time."""
    model: str = ""
    """Name of the loaded model."""
    engine: Engine | None = None
    serving: Serving | None = None
    """What a stage serves; None for the gateway."""
    hear: HelloHandler = lambda hello: None
    """Told what workers say of themselves; for the gateway."""
    background_tasks: Sequence[BackgroundTask] = ()
    """Started in this order once gRPC listens, and stopped together with it."""
    ready: Callable[[], bool] = lambda: True
    """Whether calls can succeed; while they cannot, health is NOT_SERVING, but the process goes on. Must not block."""
    asked_to_stop: Callable[[], bool] = lambda: False
    """Whether another process that belongs to this one was asked to stop, so that this one drains. Must not block."""
    kinds: CallKinds = field(default_factory=CallKinds)
    """What is special about its gRPC methods."""
    authenticate: Authenticate | None = None
    """Finds out who makes a call; None for a stage, which serves the system alone."""
    close: Callable[[], None] = field(default=lambda: None)
    """Called last, when nothing runs any more."""


Build = Callable[[Process], Service]
"""Makes the service: loads the model and whatever else it needs. It imports the libraries of its extra itself, so that
an invalid setting is reported before they are imported."""


def run(name: str, stage: Stage, build: Build) -> int:
    """Runs a service until SIGTERM or SIGINT; returns the process's exit code.

    Args:
        name: the service's name, such as "encoder".
        stage: the stage whose queues it consumes.
        build: makes the service.
    """
    begin(f"smalti {name}", status=DONE)  # Done already, unless a test calls this.
    try:
        process = Process.load(name)
        process.report["broker"] = broker_address(process.broker)
        process.report["store"] = _check_store(process.store)
        began = time.monotonic()
        if stage is not Stage.EVENTS:  # The gateway computes nothing.
            check_flags()
        with without_collection():
            service = build(process)
        process.telemetry.loaded(service.model, time.monotonic() - began)
        process.report["model"] = service.model or "none"
        found = "; ".join(f"{subject}: {text}" for subject, text in process.report.items())
        log.info("%s starts with %s", name, found)
        # Whoever runs services sends SIGTERM more than once, and means the drain; a person at a terminal presses Ctrl-C
        # again because it takes too long.
        with signals.deferred(counted=(signal.SIGINT,)) as stopping:
            code = asyncio.run(_Lifecycle(process, stage, service).run(stopping))
    except (InvalidInputError, ModelError, ModelNotFoundError) as error:
        return _cannot_start(name, str(error))
    except (DatabaseUnavailableError, EngineFailedError) as error:
        # No setting is wrong for certain, so that whoever restarts the process goes on waiting for the database, or for
        # the other processes of a group.
        _cannot_start(name, str(error))
        return DIED
    except ModuleNotFoundError as error:
        return _cannot_start(name, f"{error.name} is not installed; pip install 'smalti[{name}]'")
    if code != DONE:
        _exit(code)
    log.info("%s has ended", name)
    return DONE


def _check_store(store: ObjectStore) -> str:
    """Returns whether the store answers; raises `InvalidInputError` if it refuses: its address or keys are wrong."""
    try:
        store.check()
        return "can be written"
    except StoreUnavailableError as error:
        if not error.transient:
            raise InvalidInputError(
                "SMALTI_STORE_URL", f"the store refuses access; check its address and keys: {error}"
            ) from error
        log.warning("the store does not answer yet, and is waited for: %s", error)
        return "does not answer yet"


def _cannot_start(name: str, problem: str) -> int:
    streams.write_line(f"smalti {name}: {problem}")
    return UNUSABLE


def _exit(code: int) -> NoReturn:
    """Ends the process whatever its threads do."""
    logging.shutdown()
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
    os._exit(code)


class _Lifecycle:
    """A service from its first call to its last."""

    def __init__(self, process: Process, stage: Stage, service: Service) -> None:
        self._process = process
        self._service = service
        self._stopping = asyncio.Event()
        self._ready = False
        self._consumer: Consumer | None = None
        if service.handler is not None:
            self._consumer = consume(
                stage,
                service.handler,
                concurrency=service.concurrency,
                shards=process.settings.shards,
                publisher=process.publisher,
                store=None if stage is Stage.EVENTS else process.store,
                settings=process.broker,
                observer=process.telemetry.delivery_observer,
                key=service.serving.key if service.serving else None,
                hear=service.hear,
            )
            running = self._consumer
            process.telemetry.watch("requests_running", lambda: {QUEUE_ENTRY: running.running})
        self._hello: HelloThread | None = None
        process.telemetry.watch("ready", lambda: float(self._ready and self._serves()))
        if service.engine is not None:
            process.telemetry.watch_engine(service.engine)

    async def run(self, stopping: signals.Stopping) -> int:
        """Serves until the process must end, for one by a signal; returns the exit code."""
        loop = asyncio.get_running_loop()
        with stopping.calling(lambda number: loop.call_soon_threadsafe(self._stopping.set)):
            return await self._run(loop)

    async def _run(self, loop: asyncio.AbstractEventLoop) -> int:
        server = await serve(
            self._service.register,
            healthy=self._serves,
            needs={STORE_HEALTH: StoreCheck(self._process.store).succeeds},
            settings=self._process.rpc,
            kinds=self._service.kinds,
            interceptors=self._process.telemetry.interceptors,
            authenticate=self._service.authenticate or system_only(self._process.rpc),
        )
        started: list[BackgroundTask] = []
        try:
            for task in self._service.background_tasks:
                await task.start()
                started.append(task)
        except BaseException:
            await asyncio.gather(server.stop(0), *(task.stop(0) for task in started))
            raise
        if self._consumer is not None:
            # In a thread, since it reads the journal and may write to the store, while health is asked for.
            await asyncio.to_thread(self._consumer.start)
        self._ready = True
        self._say_hello(server)
        log.info("%s is ready at %s", self._process.name, server.address)
        dead = await self._wait_for_end()
        self._ready = False
        if dead:
            log.critical("%s ends: %s", self._process.name, dead)
            # The engine has failed its callers, whose messages go back to the queue.
            faulthandler.dump_traceback_later(2 * DEAD_SECONDS, exit=True)
            await self._drain(server, DEAD_SECONDS)
            await loop.run_in_executor(None, self._process.telemetry.close)
            return DIED
        log.info("%s drains", self._process.name)
        # The process ends in time even if something holds the interpreter's lock; the log then has all stacks.
        faulthandler.dump_traceback_later(self._process.settings.grace, exit=True)
        finished = await self._drain(server, None)
        await loop.run_in_executor(None, self._close)
        return DONE if finished else DIED

    def _say_hello(self, server: Server) -> None:
        """Tells the gateways of this worker from now on, if they are new enough to read it."""
        process, serving, engine = self._process, self._service.serving, self._service.engine
        if serving is None or engine is None or process.messages.write < ROUTES_SINCE:
            return
        self._hello = HelloThread(
            process.publisher,
            serving,
            address=process.rpc.advertised(server.port),
            slots=engine.slots,
            concurrency=self._service.concurrency,
            shards=process.settings.shards,
            interval=process.settings.hello,
            serves=lambda: self._ready and self._serves(),
        )
        self._hello.start()

    def _dead_part(self) -> str:
        """Returns which vital part has died, and why; empty while all of them live."""
        engine = self._service.engine
        if engine is not None and not engine.healthy:
            return f"its engine has stopped: {engine.failure!r}"
        if self._consumer is not None and not self._consumer.alive:
            return "its consumer has stopped"
        for task in self._service.background_tasks:
            if not task.healthy:
                return f"{type(task).__name__} has stopped"
        return ""

    def _serves(self) -> bool:
        return self._service.ready() and not self._dead_part()

    async def _wait_for_end(self) -> str:
        """Waits until a signal stops the process or a vital part dies; returns that part, or an empty string."""
        while not self._stopping.is_set() and not self._service.asked_to_stop():
            if dead := self._dead_part():
                return dead
            try:
                await asyncio.wait_for(self._stopping.wait(), WATCH_SECONDS)
            except TimeoutError:
                continue
        return ""

    async def _drain(self, server: Server, grace: float | None) -> bool:
        """Finishes what has begun and gives back the rest; changes the health first.

        Args:
            server: the gRPC server, which is stopped as well.
            grace: seconds for everything; None uses the setting of each part.

        Returns:
            False if a handler still runs, whose thread would keep the process alive.
        """
        calls = asyncio.create_task(server.stop(grace))
        await asyncio.sleep(0)  # Once the task has run, the health has changed.
        loop = asyncio.get_running_loop()
        goodbye = [] if self._hello is None else [loop.run_in_executor(None, self._hello.stop)]
        stopping = (lambda: True) if self._consumer is None else partial(self._consumer.stop, grace)
        messages = loop.run_in_executor(None, stopping)
        others = [
            task.stop(self._process.rpc.grace if grace is None else grace)
            for task in self._service.background_tasks
        ]
        results = await asyncio.gather(calls, messages, *goodbye, *others, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                log.error("a part of the service failed to stop", exc_info=result)
        return results[1] is True

    def _close(self) -> None:
        if self._service.engine is not None:
            self._service.engine.close()
        self._process.publisher.close()
        self._service.close()
        self._process.telemetry.close()
