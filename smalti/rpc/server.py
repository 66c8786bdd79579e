"""A gRPC server with TLS, limits, health and reflection, the same for every service."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from smalti.network import address_of, cannot_listen, max_connections
from smalti.rpc.calls import CallInterceptor
from smalti.rpc.health import Health
from smalti.rpc.identity import Authenticate
from smalti.rpc.places import CallKinds, Places
from smalti.rpc.settings import RPC_PREFIX, RpcSettings, message_options, rpc_settings
from smalti.rpc.tls import server_credentials

log = logging.getLogger(__name__)

HANDSHAKE_SECONDS = 10.0
"""Time for a client to begin to speak, TLS included."""
IDLE_SECONDS = 300.0
"""Time after which a connection without calls is closed; clients connect again by themselves."""
HEALTH_CONNECTIONS = 64
"""Maximum number of connections of the health port."""

HEALTH_SERVICE = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

Register = Callable[[grpc.aio.Server], None]
"""Adds servicers to a server with functions that gRPC generates, such as `add_EncoderServiceServicer_to_server`."""


class Server:
    """A running server; `serve` starts one."""

    def __init__(
        self,
        settings: RpcSettings,
        servers: Sequence[grpc.aio.Server],
        health: Health,
        calls: CallInterceptor,
        ports: Sequence[int],
    ) -> None:
        self._settings = settings
        self._servers = servers
        self._health = health
        self._calls = calls
        self._stopping: asyncio.Task[None] | None = None
        self.port = ports[0]
        """The port that the server listens on."""
        self.health_port = ports[1] if len(ports) > 1 else None
        """The port that answers only health checks; None if there is none."""

    @property
    def address(self) -> str:
        """The address of the server as host:port."""
        return address_of(self._settings.host, self.port)

    @property
    def running(self) -> int:
        """Number of calls in progress."""
        return self._calls.running

    async def stop(self, grace: float | None = None) -> None:
        """Drains and stops; may be called more than once.

        Health says NOT_SERVING first; after `drain_delay` the server refuses new calls and finishes those in progress.

        Args:
            grace: time in seconds after which the remaining calls are cancelled; None uses the setting.
        """
        if self._stopping is None:
            self._stopping = asyncio.create_task(
                self._drain(self._settings.grace if grace is None else grace), name="drain"
            )
        # Cancelling one caller does not cancel the stop for the others.
        await asyncio.shield(self._stopping)

    async def wait(self) -> None:
        """Waits until the server has stopped."""
        await asyncio.gather(*(server.wait_for_termination() for server in self._servers))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    async def _drain(self, grace: float) -> None:
        self._health.drain()
        await asyncio.sleep(self._settings.drain_delay)
        self._calls.drain()
        # The health port stops last, so that a kubelet gets answers until the end.
        for server in self._servers:
            await server.stop(grace)


class _Named:
    """Stands in for a server while services are added, to collect their names."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server
        self.names: list[str] = []

    def add_generic_rpc_handlers(self, handlers: Collection[Any]) -> None:
        self.names += [handler.service_name() for handler in handlers]
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(self, name: str, handlers: Mapping[str, Any]) -> None:
        self._server.add_registered_method_handlers(name, handlers)


async def serve(
    register: Register,
    *,
    healthy: Callable[[], bool],
    needs: Mapping[str, Callable[[], Awaitable[bool]]] | None = None,
    settings: RpcSettings | None = None,
    kinds: CallKinds = CallKinds(),
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    authenticate: Authenticate | None = None,
) -> Server:
    """Starts a server.

    Args:
        register: adds the services; methods are coroutines or asynchronous generators that raise Smalti's errors.
        healthy: tells whether the engine takes work; must not block.
        needs: further names for health checks; see `Health`.
        settings: None reads them from the environment.
        kinds: what is special about methods.
        interceptors: further interceptors, such as those for metrics and traces; they enclose all others.
        authenticate: finds out who makes a call; None if everybody may.

    Raises:
        InvalidInputError: a setting is invalid; names the variable. No port is open then.
    """
    settings = settings or rpc_settings()
    credentials = server_credentials(settings)
    calls = CallInterceptor(
        places=Places(settings, kinds),
        default_deadline=settings.default_deadline,
        max_deadline=settings.max_deadline,
        kinds=kinds,
        authenticate=authenticate,
    )
    server = grpc.aio.server(
        interceptors=[*interceptors, calls], options=_options(settings, settings.connections)
    )
    named = _Named(server)
    register(named)  # type: ignore[arg-type]
    health = Health(named.names, healthy, needs=needs)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    if settings.reflection:
        reflection.enable_server_reflection([*named.names, HEALTH_SERVICE, reflection.SERVICE_NAME], server)
    servers, ports = [server], [_bind(server, settings.host, settings.port, "port", credentials)]
    if settings.health_port is not None:
        own = grpc.aio.server(options=_options(settings, HEALTH_CONNECTIONS))
        health_pb2_grpc.add_HealthServicer_to_server(health, own)
        ports.append(_bind(own, settings.host, settings.health_port, "health_port", None))
        servers.append(own)
    for each in servers:
        await each.start()
    log.info("%s at %s", ", ".join(named.names), address_of(settings.host, ports[0]))
    return Server(settings, servers, health, calls, ports)


def _options(settings: RpcSettings, connections: int) -> list[tuple[str, Any]]:
    return [
        *message_options(settings),
        # Further ones are closed at once: idle ones would use up the files of the process.
        ("grpc.max_allowed_incoming_connections", max_connections(connections)),
        ("grpc.server_handshake_timeout_ms", round(HANDSHAKE_SECONDS * 1000)),
        ("grpc.max_connection_idle_ms", round(IDLE_SECONDS * 1000)),
        # Otherwise a second server could listen on the same port and silently take part of the calls.
        ("grpc.so_reuseport", 0),
        # A client may send a keepalive ping each minute; by default the server would close the connection.
        ("grpc.http2.min_ping_interval_without_data_ms", 60_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # Of one connection. Not less, since a web service makes all its calls over one.
        ("grpc.max_concurrent_streams", settings.max_calls + settings.max_streams),
    ]


def _bind(
    server: grpc.aio.Server, host: str, port: int, setting: str, credentials: grpc.ServerCredentials | None
) -> int:
    address = address_of(host, port)
    try:
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)
    except RuntimeError:
        raise cannot_listen(RPC_PREFIX, host, port, field=setting.upper()) from None
