"""grpc.health.v1 that asks the engine at every check, so that it is never out of date."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

log = logging.getLogger(__name__)

WATCH_SECONDS = 1.0
"""Interval between the checks for clients that watch."""


class Health(health_pb2_grpc.HealthServicer):
    """The health of the services of a server and of the server as a whole (""); it is that of the engine.

    A server may have further names, for what it needs from others.
    """

    def __init__(
        self,
        services: Iterable[str],
        healthy: Callable[[], bool],
        *,
        needs: Mapping[str, Callable[[], Awaitable[bool]]] | None = None,
        watch_seconds: float = WATCH_SECONDS,
    ) -> None:
        """Starts with the health of the engine.

        Args:
            services: full names of the services, such as "smalti.v1.EncoderService".
            healthy: tells whether the engine takes work; called often from the event loop, so it must not block. An
                exception counts as False.
            needs: further names, each with a check of something that the server needs. Such a name is SERVING while the
                engine takes work and the check succeeds; an exception counts as a failure.
            watch_seconds: interval between the checks for each client that watches.
        """
        self._services = {"", *services}
        self._healthy = healthy
        self._needs = needs or {}
        self._watch_seconds = watch_seconds
        self._draining = asyncio.Event()

    def drain(self) -> None:
        """Reports NOT_SERVING from now on, and ends the calls of clients that watch after telling them."""
        self._draining.set()

    async def status(self, service: str) -> int:
        """Returns the health of a service, a value of `HealthCheckResponse.ServingStatus`."""
        if service not in self._services and service not in self._needs:
            return HealthCheckResponse.SERVICE_UNKNOWN
        serving = not self._draining.is_set() and self._is_healthy()
        if serving and service in self._needs:
            serving = await self._has(service)
        return HealthCheckResponse.SERVING if serving else HealthCheckResponse.NOT_SERVING

    async def Check(  # noqa: D102, N802
        self,
        request: HealthCheckRequest,
        context: "grpc.aio.ServicerContext[HealthCheckRequest, HealthCheckResponse]",
    ) -> HealthCheckResponse:
        status = await self.status(request.service)
        if status == HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"unknown service {request.service}")
        return HealthCheckResponse(status=status)

    async def Watch(  # noqa: D102, N802
        self,
        request: HealthCheckRequest,
        context: "grpc.aio.ServicerContext[HealthCheckRequest, HealthCheckResponse]",
    ) -> None:
        last = None
        while True:
            # Read before the status, so that a stopping server always reports NOT_SERVING last.
            draining = self._draining.is_set()
            status = await self.status(request.service)
            if status != last:
                await context.write(HealthCheckResponse(status=status))
                last = status
            if draining:
                return
            try:
                await asyncio.wait_for(self._draining.wait(), self._watch_seconds)
            except TimeoutError:
                continue

    def _is_healthy(self) -> bool:
        try:
            return bool(self._healthy())
        except Exception:
            log.exception("the health check failed")
            return False

    async def _has(self, name: str) -> bool:
        try:
            return await self._needs[name]()
        except Exception:
            log.exception("the health check of %s failed", name)
            return False
