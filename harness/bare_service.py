"""A service that only answers health checks, for tests of `smalti up`.

`python -m harness.bare_service NAME` writes its events to the file `events` in the folder `BARE_FOLDER`. If that folder
has a file `unusable-NAME`, it ends at once like a service with an invalid setting; with `stubborn-NAME` it ignores
SIGTERM.
"""

import os
import signal
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
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
    server = grpc.server(ThreadPoolExecutor(2))
    health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
    server.add_insecure_port(f"{os.environ['SMALTI_RPC_HOST']}:{os.environ['SMALTI_RPC_PORT']}")
    server.start()
    store = os.environ["SMALTI_STORE_URL"].split("@")[1]
    write(f"runs with {os.environ['SMALTI_MODEL']} {store}")
    while not ending.wait(60):
        pass
    server.stop(0).wait()
    write("has ended")


if __name__ == "__main__":
    run(sys.argv[1], Path(os.environ[FOLDER]))
