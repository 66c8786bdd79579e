"""The process of the web service, from reading its settings to its exit code."""

import asyncio
import contextlib
import faulthandler
import logging
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import uvicorn

from smalti.client import AsyncClient
from smalti.entrance import begin, signals, streams
from smalti.errors import InvalidInputError
from smalti.network import WatchedFiles, address_of, cannot_listen, check_key_pair, check_plaintext
from smalti.rpc.observer import client_interceptors
from smalti.services.web.app import build
from smalti.services.web.context import WebContext
from smalti.services.web.gateway import StreamMetadata, UnaryMetadata, UploadMetadata
from smalti.services.web.limits import LimitedListener, protocol_class
from smalti.services.web.settings import WEB_PREFIX, WebSettings, web_settings
from smalti.settings import listed
from smalti.telemetry import Endpoint, Metrics, logs, serve_metrics, tracing

log = logging.getLogger(__name__)

NAME: Final = "web"
DONE, DIED, UNUSABLE = 0, 1, 2
"""Exit codes, as of every service: drained; the drain hung; an invalid setting."""
CALL_SECONDS: Final = 10.0
"""Time limit for each try of a call of the gateway."""
END_SECONDS: Final = 2.0
"""Time for the last answers, once requests that wait for a job have been told to come back."""
HANG_SECONDS: Final = 5.0
"""Time after the grace period in which the process ends even if something hangs."""


@dataclass(frozen=True, kw_only=True)
class WebTelemetry:
    """What the process records."""

    metrics: Metrics
    tracer: tracing.Tracing | None
    endpoint: Endpoint | None

    @classmethod
    def start(cls) -> "WebTelemetry":
        """Sets up the log, the traces and the metrics; raises `InvalidInputError` for an invalid setting."""
        logs.set_up(NAME)
        # Its lines repeat ours, and anyone can cause its warnings.
        logging.getLogger("uvicorn").setLevel(logging.ERROR)
        metrics = Metrics(NAME)
        return cls(metrics=metrics, tracer=tracing.start(NAME), endpoint=serve_metrics(metrics))

    def close(self) -> None:
        """Exports the remaining spans, and stops serving metrics."""
        if self.endpoint:
            self.endpoint.close()
        if self.tracer:
            self.tracer.close()


class WebServer:
    """The service in an event loop."""

    def __init__(self, settings: WebSettings, metrics: Metrics, *, server: str | None = None) -> None:
        """Listens, and answers once `run` is called.

        Args:
            settings: the settings.
            metrics: what is counted.
            server: the address of the gateway; None for `SMALTI_SERVER`, or the gateway of `smalti up`.

        Raises:
            InvalidInputError: a setting is invalid; names the variable.
        """
        check_certificate(settings)
        self._settings = settings
        self._metrics = metrics
        self._server = server
        self._socket = listening_socket(settings)
        self.ready = False
        self.context: WebContext | None = None
        self._stop = asyncio.Event()

    @property
    def url(self) -> str:
        """The URL of the service on this machine."""
        host, port = self._socket.getsockname()[:2]
        return f"{'https' if self._settings.tls_certificate else 'http'}://{address_of(host, port)}"

    def stop(self) -> None:
        """Begins to drain; to be called in the event loop."""
        self._stop.set()

    async def run(self) -> None:
        """Serves until `stop` is called, then finishes what has begun."""
        settings = self._settings
        interceptors = (UnaryMetadata(), StreamMetadata(), UploadMetadata(), *client_interceptors())
        async with AsyncClient(
            self._server,
            key="",
            call_seconds=CALL_SECONDS,
            retry_seconds=settings.retry,
            interceptors=interceptors,
        ) as client:
            context = self.context = WebContext.make(settings, client, self._metrics)
            self._metrics.watch("ready", lambda: float(self.ready))
            server = _Uvicorn(self._config(context))
            serving = asyncio.create_task(server.serve([self._socket]))
            self.ready = True
            log.info("%s is ready at %s", NAME, self.url)
            stopping = asyncio.create_task(self._stop.wait())
            await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            await self._drain(context, server, serving)

    async def _drain(
        self, context: WebContext, server: uvicorn.Server, serving: "asyncio.Task[None]"
    ) -> None:
        log.info("%s drains", NAME)
        self.ready = False
        context.leaving.set()
        await asyncio.sleep(self._settings.drain_delay)
        context.draining.set()
        server.should_exit = True
        # Streams of events can be taken up elsewhere at once; other requests may finish.
        _, running = await asyncio.wait({serving}, timeout=self._settings.grace)
        context.stopping.set()
        if running:
            await asyncio.wait({serving}, timeout=END_SECONDS)
        server.force_exit = True
        await serving
        await context.attendance.close()

    def _config(self, context: WebContext) -> uvicorn.Config:
        settings = self._settings
        return uvicorn.Config(
            build(context),
            http=protocol_class(settings),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=bool(settings.proxies),
            forwarded_allow_ips=listed(settings.proxies),
            timeout_keep_alive=settings.keep_alive,  # type: ignore[arg-type]
            ssl_certfile=settings.tls_certificate,
            ssl_keyfile=settings.tls_key,
            ssl_context_factory=renewed_context if settings.tls_certificate else None,
        )


class _Uvicorn(uvicorn.Server):
    """uvicorn without its handlers of signals, which end the process before everything is closed."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listening_socket(settings: WebSettings) -> socket.socket:
    """Returns a socket that listens; raises `InvalidInputError` if the address cannot be used."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listening = LimitedListener.listening((settings.host, settings.port), family, settings.connections)
    except OSError:
        raise cannot_listen(WEB_PREFIX, settings.host, settings.port) from None
    # Connections inherit it. asyncio sets it only where the protocol of a socket is named, and without it a body waits
    # up to 40 ms for the client to acknowledge the header.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def check_certificate(settings: WebSettings) -> None:
    """Raises `InvalidInputError` if the files of the certificate and its key cannot be used, or are needed."""
    if settings.tls_certificate is None or settings.tls_key is None:
        check_plaintext(settings.host, f"{WEB_PREFIX}TLS_CERTIFICATE", "is not set")
        return
    check_key_pair(f"{WEB_PREFIX}TLS_", settings.tls_certificate, settings.tls_key)


def renewed_context(config: uvicorn.Config, make: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
    """Returns uvicorn's TLS context; a new connection after a renewal of the certificate gets the new one."""
    files = WatchedFiles([Path(path) for path in (config.ssl_certfile, config.ssl_keyfile) if path])
    newest = context = make()

    def choose(connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, first: ssl.SSLContext) -> None:
        nonlocal newest
        if files.changed():
            try:
                newest = make()
                log.info("new connections use the renewed certificate")
            except OSError as error:  # Perhaps half of the files were replaced so far.
                log.warning("the renewed certificate cannot be used yet: %s", error)
        connection.context = newest

    context.sni_callback = choose
    return context


def run() -> int:
    """Runs the service until SIGTERM or SIGINT; returns the process's exit code."""
    begin(f"smalti {NAME}", status=DONE)
    try:
        telemetry = WebTelemetry.start()
        asyncio.run(_serve(web_settings(), telemetry.metrics))
    except InvalidInputError as error:
        streams.write_line(f"smalti {NAME}: {error}")
        return UNUSABLE
    telemetry.close()
    log.info("%s has ended", NAME)
    return DONE


async def _serve(settings: WebSettings, metrics: Metrics) -> None:
    server = WebServer(settings, metrics)
    loop = asyncio.get_running_loop()

    def stop(number: int) -> None:
        # The process ends in time even if something hangs; the log then has all stacks.
        faulthandler.dump_traceback_later(settings.drain_delay + settings.grace + HANG_SECONDS, exit=True)
        loop.call_soon_threadsafe(server.stop)

    with signals.deferred(counted=(signal.SIGINT,)) as stopping, stopping.calling(stop):
        await server.run()
