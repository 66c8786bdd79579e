"""A receiver of webhooks: an HTTP server that notes what it gets, and answers as it is told."""

import ssl
import threading
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import NamedTuple, Self

from harness.certificates import Identity


class Received(NamedTuple):
    """A request."""

    path: str
    headers: dict[str, str]
    body: bytes


class Receiver:
    """Serves on 127.0.0.1 in a thread, from `with` to its end."""

    def __init__(self, identity: Identity | None = None) -> None:
        """Takes the certificate of https; None serves http."""
        self.received: list[Received] = []
        self.answers: deque[int] = deque()
        """Statuses of the next answers; then it is 204."""
        self.headers: dict[str, str] = {}
        """Headers of the answers."""
        self.holding = threading.Event()
        """While it is cleared, requests are not answered."""
        self.holding.set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.received.append(
                    Received(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
                )
                receiver.holding.wait(60)
                self.send_response(receiver.answers.popleft() if receiver.answers else 204)
                for name, value in receiver.headers.items():
                    self.send_header(name, value)
                self.end_headers()

            do_GET = do_POST  # noqa: N815

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        scheme = "http"
        if identity is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(identity.certificate_file, identity.key_file)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            scheme = "https"
        self.port = self._server.server_port
        self.url = f"{scheme}://127.0.0.1:{self.port}/ended"

    def __enter__(self) -> Self:
        """Starts serving."""
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops serving."""
        self.holding.set()
        self._server.shutdown()
        self._server.server_close()
