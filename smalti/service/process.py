"""A service's process, from its first setting to its exit code.

The way of every service: settings, model, gRPC, queue; then it serves until it is told to end or something that it
cannot do without has died. `run` is the whole of it; what a service is in particular is its `Service`.
"""

import asyncio
import faulthandler
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NoReturn, Protocol, Self

from smalti.errors import InvalidInputError, ModelError, ModelNotFoundError, StoreUnavailableError
from smalti.messages import Stage
from smalti.queue import (
    QUEUE_ENTRY,
    BrokerPublisher,
    BrokerSettings,
    Consumer,
    Handler,
    broker_settings,
    consume,
)
from smalti.rpc.server import Register, Server, serve
from smalti.rpc.settings import RpcSettings, rpc_settings
from smalti.rpc.tls import server_credentials
from smalti.service import failpoints
from smalti.service.engine import Engine
from smalti.service.settings import ServiceSettings, service_settings
from smalti.service.telemetry import Telemetry
from smalti.service.telemetry import start as start_telemetry
from smalti.storage import ObjectStore, open_store

log = logging.getLogger(__name__)

DONE, DIED, UNUSABLE = 0, 1, 2
"""The exit codes: drained; engine or consumption dead, or the drain hung; a setting or model that cannot be used."""

WATCH_SECONDS = 0.1
"""How often it is looked whether everything is alive."""
DEAD_SECONDS = 5.0
"""What a process whose engine has died takes for telling those who wait for it; then it ends in any case."""


class BackgroundTask(Protocol):
    """Something else that a service runs in its process, such as an HTTP server."""

    @property
    def healthy(self) -> bool:
        """Whether it does its work; when not, the process ends. Must not wait."""
        ...

    async def start(self) -> None:
        """Starts it; raises `InvalidInputError` when a setting of it cannot be used."""
        ...

    async def stop(self, grace: float) -> None:
        """Takes nothing new, finishes what it has begun, and stops after so many seconds at the latest."""
        ...


@dataclass(frozen=True)
class Process:
    """What a process has before it knows its service: the settings, and the way to broker and store."""

    name: str
    settings: ServiceSettings
    rpc: RpcSettings
    broker: BrokerSettings
    publisher: BrokerPublisher
    store: ObjectStore
    telemetry: Telemetry

    @classmethod
    def of(cls, name: str) -> Self:
        """Reads and checks the settings, and begins to log; nothing is connected to.

        Raises:
            InvalidInputError: a setting cannot be used; names the variable.
        """
        telemetry = start_telemetry(name)
        failpoints.arm()
        settings, rpc, broker = service_settings(), rpc_settings(), broker_settings()
        server_credentials(rpc)
        return cls(
            name, settings, rpc, broker, BrokerPublisher(broker), telemetry.store(open_store()), telemetry
        )


@dataclass(frozen=True)
class Service:
    """What a process serves."""

    register: Register
    """Adds the gRPC services to a server."""
    handler: Handler
    """Handles the messages of its queue."""
    concurrency: int
    """How many messages are handled at the same time."""
    model: str = ""
    """The name of the model that it serves."""
    engine: Engine | None = None
    companions: Sequence[BackgroundTask] = ()
    """Started in their order after gRPC listens, and stopped together with it."""
    endless: Collection[str] = ()
    """gRPC methods that are broken off when the service drains; see `smalti.rpc.server.serve`."""
    close: Callable[[], None] = field(default=lambda: None)
    """Called last of all, when nothing runs any more."""


Build = Callable[[Process], Service]
"""Makes the service: loads the model, and whatever else it needs. Libraries that belong to an extra are imported in it,
so that a wrong setting is told before they are."""


def run(name: str, stage: Stage, build: Build) -> int:
    """Runs a service until it is told to end by SIGTERM or SIGINT; returns the process's exit code.

    Args:
        name: the service's: "encoder".
        stage: whose queue it consumes.
        build: makes the service.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end_at_once)  # Nothing has begun that would have to be finished.
    try:
        process = Process.of(name)
        _check_store(process.store)
        began = time.monotonic()
        service = build(process)
        process.telemetry.loaded(service.model, time.monotonic() - began)
        code = asyncio.run(_Life(process, stage, service).live())
    except (InvalidInputError, ModelError, ModelNotFoundError) as error:
        return _cannot_start(name, str(error))
    except ModuleNotFoundError as error:
        return _cannot_start(name, f"{error.name} is not installed; pip install 'smalti[{name}]'")
    if code != DONE:
        _exit(code)
    log.info("%s has ended", name)
    return DONE


def _check_store(store: ObjectStore) -> None:
    """Tells a store that refuses, whose address or keys must be wrong, from one that is only away."""
    try:
        store.check()
    except StoreUnavailableError as error:
        if not error.transient:
            raise InvalidInputError("SMALTI_STORE_URL", f"the store refuses: {error}") from error
        log.warning("the store does not answer yet: %s", error)


def _cannot_start(name: str, problem: str) -> int:
    sys.stderr.write(f"smalti {name}: {' '.join(problem.split())}\n")
    return UNUSABLE


def _end_at_once(number: int, frame: object) -> NoReturn:
    _exit(DONE)


def _exit(code: int) -> NoReturn:
    """Ends the process whatever its threads do."""
    logging.shutdown()
    sys.stderr.flush()
    os._exit(code)


class _Life:
    """A service from its first call to its last."""

    def __init__(self, process: Process, stage: Stage, service: Service) -> None:
        self._process = process
        self._service = service
        self._told_to_end = asyncio.Event()
        self._ready = False
        self._consumption: Consumer = consume(
            stage,
            service.handler,
            concurrency=service.concurrency,
            publisher=process.publisher,
            store=None if stage is Stage.EVENTS else process.store,
            settings=process.broker,
            observer=process.telemetry.delivery_observer,
        )
        process.telemetry.watch("ready", lambda: float(self._ready and not self._what_is_dead()))
        process.telemetry.watch("requests_running", lambda: {QUEUE_ENTRY: self._consumption.running})
        if service.engine is not None:
            process.telemetry.watch_engine(service.engine)

    async def live(self) -> int:
        """Serves until the end; returns the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            # Not the loop's own handlers: those go with it, and a second signal would kill what is being closed.
            signal.signal(number, lambda *_: self._told_to_end_soon(loop))
        server = await serve(
            self._service.register,
            healthy=lambda: not self._what_is_dead(),
            settings=self._process.rpc,
            endless=self._service.endless,
            interceptors=self._process.telemetry.interceptors,
        )
        started: list[BackgroundTask] = []
        try:
            for companion in self._service.companions:
                await companion.start()
                started.append(companion)
        except BaseException:
            await asyncio.gather(server.stop(0), *(companion.stop(0) for companion in started))
            raise
        self._consumption.start()
        self._ready = True
        log.info("%s is ready at %s", self._process.name, server.address)
        dead = await self._wait_for_the_end()
        self._ready = False
        if dead:
            log.critical("%s ends: %s", self._process.name, dead)
            # Whoever waits for the engine has been told, and gives its message back.
            faulthandler.dump_traceback_later(2 * DEAD_SECONDS, exit=True)
            await self._drain(server, DEAD_SECONDS)
            await loop.run_in_executor(None, self._process.telemetry.close)
            return DIED
        log.info("%s drains", self._process.name)
        # From here on the process ends, even when something holds the interpreter's lock: with all stacks in the log.
        faulthandler.dump_traceback_later(self._process.settings.grace, exit=True)
        finished = await self._drain(server, None)
        await loop.run_in_executor(None, self._close)
        return DONE if finished else DIED

    def _told_to_end_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._told_to_end.set)

    def _what_is_dead(self) -> str:
        """Says what has died of what the service cannot do without; nothing while all is well."""
        engine = self._service.engine
        if engine is not None and not engine.healthy:
            return f"its engine has stopped: {engine.failure!r}"
        if not self._consumption.alive:
            return "its messages are no longer taken"
        for companion in self._service.companions:
            if not companion.healthy:
                return f"{type(companion).__name__} has stopped"
        return ""

    async def _wait_for_the_end(self) -> str:
        """Waits until the process is told to end, or something has died; returns what."""
        while not self._told_to_end.is_set():
            if dead := self._what_is_dead():
                return dead
            try:
                await asyncio.wait_for(self._told_to_end.wait(), WATCH_SECONDS)
            except TimeoutError:
                continue
        return ""

    async def _drain(self, server: Server, grace: float | None) -> bool:
        """Finishes what has begun and gives back the rest; health says so first of all.

        Args:
            server: is stopped as well.
            grace: the seconds for all of it; None for those of the settings of each.

        Returns:
            False when something still runs, whose thread would keep the process.
        """
        calls = asyncio.create_task(server.stop(grace))
        await asyncio.sleep(0)  # Health has changed when it has run once.
        messages = asyncio.get_running_loop().run_in_executor(None, partial(self._consumption.stop, grace))
        others = [
            companion.stop(self._process.rpc.grace if grace is None else grace)
            for companion in self._service.companions
        ]
        results = await asyncio.gather(calls, messages, *others, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                log.error("something did not stop as it should", exc_info=result)
        return results[1] is True

    def _close(self) -> None:
        if self._service.engine is not None:
            self._service.engine.close()
        self._process.publisher.close()
        self._service.close()
        self._process.telemetry.close()
