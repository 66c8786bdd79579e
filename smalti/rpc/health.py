"""grpc.health.v1 that asks the engine each time, so that it cannot say more than is true."""

import asyncio
import logging
from collections.abc import Callable, Iterable

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

log = logging.getLogger(__name__)

# How often those who watch are told of a change.
WATCH_SECONDS = 1.0


class Health(health_pb2_grpc.HealthServicer):
    """The health of a server's services, and "" for the server as a whole: all are well while the engine is."""

    def __init__(
        self, services: Iterable[str], healthy: Callable[[], bool], *, watch_seconds: float = WATCH_SECONDS
    ) -> None:
        """Knows the services.

        Args:
            services: their full names, such as "smalti.v1.EncoderService".
            healthy: tells whether the engine takes work; called often, from the event loop, so it must not wait. An
                error of it counts as no.
            watch_seconds: how often it is called for each who watches.
        """
        self._services = {"", *services}
        self._healthy = healthy
        self._watch_seconds = watch_seconds
        self._draining = asyncio.Event()

    def drain(self) -> None:
        """From now on nothing is well; those who watch are told at once, and their calls end."""
        self._draining.set()

    def status(self, service: str) -> int:
        """Returns how a service is: a value of `HealthCheckResponse.ServingStatus`."""
        if service not in self._services:
            return HealthCheckResponse.SERVICE_UNKNOWN
        serving = not self._draining.is_set() and self._is_healthy()
        return HealthCheckResponse.SERVING if serving else HealthCheckResponse.NOT_SERVING

    async def Check(  # noqa: D102, N802
        self,
        request: HealthCheckRequest,
        context: "grpc.aio.ServicerContext[HealthCheckRequest, HealthCheckResponse]",
    ) -> HealthCheckResponse:
        status = self.status(request.service)
        if status == HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service")
        return HealthCheckResponse(status=status)

    async def Watch(  # noqa: D102, N802
        self,
        request: HealthCheckRequest,
        context: "grpc.aio.ServicerContext[HealthCheckRequest, HealthCheckResponse]",
    ) -> None:
        last = None
        while True:
            # Looked at before the status, so that the last thing said of a server that stops is that it does.
            over = self._draining.is_set()
            status = self.status(request.service)
            if status != last:
                await context.write(HealthCheckResponse(status=status))
                last = status
            if over:
                return
            try:
                await asyncio.wait_for(self._draining.wait(), self._watch_seconds)
            except TimeoutError:
                continue

    def _is_healthy(self) -> bool:
        try:
            return bool(self._healthy())
        except Exception:
            log.exception("asking for the health failed")
            return False
