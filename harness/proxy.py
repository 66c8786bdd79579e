"""A TCP proxy that injects network faults: cut connections, delays, lost responses.

It listens on a port of 127.0.0.1 and forwards bytes to another one. Its `NetworkFault` may change at any time, and
affects open connections too.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from harness.servers import HOST

CHUNK = 64 * 1024


@dataclass(frozen=True)
class NetworkFault:
    """The fault of a connection; none by default."""

    cut: bool = False
    """Close connections, and refuse new ones."""
    delay: float = 0.0
    """Delay of each chunk in seconds, in both directions."""
    lose_responses: bool = False
    """Forward requests, and drop their responses: the client waits in vain."""
    answer: bytes | None = None
    """Answer every request with these bytes instead of forwarding it."""
    max_bytes: int | None = None
    """Close a connection after this many bytes of responses."""


class Proxy:
    """Forwards connections to a port, with faults; a context manager."""

    def __init__(self, port: int) -> None:
        """Starts to listen on `self.port`.

        Args:
            port: the port of 127.0.0.1 to forward to.
        """
        self.fault = NetworkFault()
        self._target = port
        self._listener = socket.create_server((HOST, 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._closing = False
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    @contextlib.contextmanager
    def faulty(self, fault: NetworkFault) -> Iterator[None]:
        """Injects a fault while the block runs."""
        self.fault = fault
        if fault.cut:
            self.break_connections()
        try:
            yield
        finally:
            self.fault = NetworkFault()

    def break_connections(self) -> None:
        """Closes all open connections."""
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            _end(connection)

    def close(self) -> None:
        """Stops listening, and closes all connections."""
        self._closing = True
        _end(self._listener)
        self._listener.close()
        self.break_connections()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _accept(self) -> None:
        while not self._closing:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.fault.cut:
                client.close()
                continue
            threading.Thread(target=self._serve, args=(client,), name="proxy-connection", daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection((HOST, self._target), timeout=10)
        except OSError:
            client.close()
            return
        server.settimeout(None)
        with self._lock:
            self._open |= {client, server}
        back = threading.Thread(target=self._carry_answers, args=(server, client), daemon=True)
        back.start()
        self._carry_requests(client, server)
        back.join()
        with self._lock:
            self._open -= {client, server}
        client.close()
        server.close()

    def _carry_requests(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(CHUNK):
                fault = self.fault
                if fault.answer is not None:
                    client.sendall(fault.answer)
                    break
                time.sleep(fault.delay)
                server.sendall(data)
            else:
                # The client has sent everything; responses may still arrive.
                server.shutdown(socket.SHUT_WR)
                return
        _end(client)
        _end(server)

    def _carry_answers(self, server: socket.socket, client: socket.socket) -> None:
        carried, lost = 0, False
        with contextlib.suppress(OSError):
            while data := server.recv(CHUNK):
                fault = self.fault
                if fault.lose_responses:
                    lost = True
                    continue
                if lost:
                    break  # The client would take the next response for the lost one.
                if fault.max_bytes is not None:
                    data = data[: max(0, fault.max_bytes - carried)]
                    carried += len(data)
                time.sleep(fault.delay)
                client.sendall(data)
                if fault.max_bytes is not None and carried >= fault.max_bytes:
                    break
        _end(client)
        _end(server)


def _end(connection: socket.socket) -> None:
    """Wakes up the thread of a connection, which closes it."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
