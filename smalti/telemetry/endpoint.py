"""The HTTP endpoint that serves `/metrics` to Prometheus."""

import logging
import threading
from dataclasses import dataclass
from wsgiref.simple_server import WSGIServer

from prometheus_client import start_http_server

from smalti.errors import InvalidInputError
from smalti.settings import read_settings
from smalti.telemetry.metrics import Metrics
from smalti.telemetry.settings import METRICS_PREFIX, MetricsSettings

logger = logging.getLogger(__name__)


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
        server, thread = start_http_server(settings.port, settings.host, metrics.registry())
    except OSError as error:
        raise InvalidInputError(
            f"{METRICS_PREFIX}PORT",
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror or error}",
        ) from None
    logger.info("metrics are served at http://%s:%d/metrics", settings.host, server.server_port)
    return Endpoint(server, thread)
