"""The port of the metrics: nobody can keep it from answering others."""

import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from harness.waiting import wait_until
from smalti.telemetry import Metrics, MetricsSettings, serve_metrics
from smalti.telemetry.endpoint import MAX_CONNECTIONS, MetricsServer

LONG = 30.0


@pytest.fixture
def port() -> Iterator[int]:
    """The port of a running endpoint."""
    endpoint = serve_metrics(Metrics("encoder"), MetricsSettings(port=0))
    assert endpoint is not None
    yield endpoint.port
    endpoint.close()


def connect(stack: ExitStack, port: int, sent: bytes) -> socket.socket:
    connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=LONG))
    connection.sendall(sent)
    return connection


def scrape(port: int) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=LONG) as answer:
        found: bytes = answer.read()
        return found


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /metrics HTTP/1.1\r\n",
        pytest.param(b"", marks=pytest.mark.slow),
        pytest.param(b"POST / HTTP/1.1\r\ncontent-length: 9\r\n\r\n", marks=pytest.mark.slow),
    ],
)
def test_many_idle_connections_take_few_threads_and_no_answer(port: int, sent: bytes) -> None:
    before = threading.active_count()
    with ExitStack() as stack:
        for _ in range(10 * MAX_CONNECTIONS):
            connect(stack, port, sent)
        assert b"process_resident_memory_bytes" in scrape(port)
        wait_until(lambda: threading.active_count() <= before + MAX_CONNECTIONS)
    wait_until(lambda: threading.active_count() == before)


def test_connection_is_closed_when_its_time_is_up() -> None:
    with MetricsServer(("127.0.0.1", 0), seconds=0.2) as server, ExitStack() as stack:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        slow = connect(stack, server.server_port, b"GET /met")
        assert slow.recv(1) == b""
        server.shutdown()
        thread.join()
