"""The HTTP endpoint that serves `/metrics` to Prometheus."""

import logging
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from socketserver import ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import make_wsgi_app

from smalti.network import address_of, cannot_listen
from smalti.settings import read_settings
from smalti.telemetry.metrics import Metrics
from smalti.telemetry.settings import METRICS_PREFIX, MetricsSettings

logger = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 16
"""Connections at the same time, each with a thread; a new one takes the place of the oldest."""
CONNECTION_SECONDS: Final = 10.0
"""Time for a request and its answer."""


class MetricsServer(ThreadingMixIn, WSGIServer):
    """A server of a single page, which nobody can keep from answering others."""

    daemon_threads = True
    block_on_close = False

    def __init__(
        self,
        address: tuple[str, int],
        family: socket.AddressFamily = socket.AF_INET,
        *,
        seconds: float = CONNECTION_SECONDS,
    ) -> None:
        """Listens.

        Args:
            address: host and port.
            family: the family of the address.
            seconds: time for a request and its answer.
        """
        self.address_family = family
        self._seconds = seconds
        self._begun: dict[socket.socket, float] = {}
        """The time at which each open connection began, the oldest first."""
        self._lock = threading.Lock()
        super().__init__(address, SilentHandler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Handles a connection in a thread."""
        with self._lock:
            while len(self._begun) >= MAX_CONNECTIONS:
                self._end(next(iter(self._begun)))
            self._begun[request] = time.monotonic()
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        """Ends the connections whose time is up; called twice a second at least."""
        with self._lock:
            limit = time.monotonic() - self._seconds
            for connection in [each for each, begun in self._begun.items() if begun < limit]:
                self._end(connection)

    def shutdown_request(self, request: Any) -> None:
        """Closes a connection."""
        with self._lock:
            self._begun.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignores that a client went away, or was sent away."""

    def _end(self, connection: socket.socket) -> None:
        """Ends what a connection's thread waits for; the thread then closes it."""
        del self._begun[connection]
        with suppress(OSError):  # Its client may have been faster.
            connection.shutdown(socket.SHUT_RDWR)


class SilentHandler(WSGIRequestHandler):
    """Answers without a line in the log."""

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: D102
        ...


@dataclass(frozen=True)
class Endpoint:
    """A running server of `/metrics`."""

    server: WSGIServer
    thread: threading.Thread

    @property
    def port(self) -> int:
        """The port on which it listens."""
        return self.server.server_port

    def close(self) -> None:
        """Stops the server."""
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def serve_metrics(metrics: Metrics, settings: MetricsSettings | None = None) -> Endpoint | None:
    """Serves `/metrics` in a thread; returns None when no port is set.

    Args:
        metrics: the metrics to serve.
        settings: None reads them from the environment.

    Raises:
        InvalidInputError: the address is taken or cannot be resolved.
    """
    settings = settings or read_settings(MetricsSettings)
    if settings.port is None:
        return None
    try:
        found = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, *_, address = found[0]
        server = MetricsServer((str(address[0]), settings.port), family)
    except OSError:
        raise cannot_listen(METRICS_PREFIX, settings.host, settings.port) from None
    server.set_app(make_wsgi_app(metrics.registry()))
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    logger.info("metrics are served at http://%s/metrics", address_of(settings.host, server.server_port))
    return Endpoint(server, thread)
