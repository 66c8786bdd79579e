"""A service that only answers health checks, for tests of `smalti up`; the web service does so over HTTP.

`python -m harness.bare_service NAME` listens on its port for metrics too, and writes its events to the file `events` in
the folder `BARE_FOLDER`. If that folder has a file `unusable-NAME`, it ends at once like a service with an invalid
setting; with `stubborn-NAME` it ignores SIGTERM.
"""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import grpc
from grpc_health.v1 import health, health_pb2_grpc

FOLDER = "BARE_FOLDER"


def run(name: str, folder: Path) -> None:
    """Serves until SIGTERM."""
    ending = threading.Event()

    def write(event: str) -> None:
        with (folder / "events").open("a") as events:
            events.write(f"{name} {event}\n")

    def end(*_: object) -> None:
        port = urlsplit(os.environ["SMALTI_BROKER_URL"]).port
        with socket.create_connection(("127.0.0.1", port or 0), 5):
            write("ends while the broker is there")
        if not (folder / f"stubborn-{name}").exists():
            ending.set()

    signal.signal(signal.SIGTERM, end)
    if (folder / f"unusable-{name}").exists():
        sys.stderr.write(f"smalti {name}: SMALTI_MODEL: it is invalid\n")
        sys.exit(2)
    with socket.socket() as metrics:
        metrics.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            metrics.bind(("127.0.0.1", int(os.environ["SMALTI_METRICS_PORT"])))
        except OSError:
            sys.exit(2)
        metrics.listen()
        serve(name, ending, write)


def serve(name: str, ending: threading.Event, write: Callable[[str], None]) -> None:
    """Answers until the end."""
    stop = serve_web() if name == "web" else serve_health()
    store = os.environ["SMALTI_STORE_URL"].split("@")[1]
    write(f"runs with {os.environ['SMALTI_MODEL']} {store}")
    while not ending.wait(60):
        pass
    stop()
    write("has ended")


def serve_health() -> Callable[[], object]:
    """Answers health checks; returns a function that ends it."""
    server = grpc.server(ThreadPoolExecutor(2))
    health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
    server.add_insecure_port(f"{os.environ['SMALTI_RPC_HOST']}:{os.environ['SMALTI_RPC_PORT']}")
    server.start()
    return lambda: server.stop(0).wait()


def serve_web() -> Callable[[], object]:
    """Answers every GET with 200; returns a function that ends it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Logs nothing."""

    server = ThreadingHTTPServer((os.environ["SMALTI_WEB_HOST"], int(os.environ["SMALTI_WEB_PORT"])), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.shutdown


if __name__ == "__main__":
    run(sys.argv[1], Path(os.environ[FOLDER]))
