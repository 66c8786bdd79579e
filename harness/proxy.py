"""A way to a server that can be made bad, for tests of faults: cut, slow, or deaf to the answers.

A proxy listens on a port of 127.0.0.1 and carries bytes to a port behind it. What it does wrong is one `Trouble`, which
may change at any time; connections that are open feel it too.
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

PIECE = 64 * 1024


@dataclass(frozen=True)
class Trouble:
    """What is wrong with the way; nothing, as it is made."""

    cut: bool = False
    """Connections end, and new ones are refused."""
    delay: float = 0.0
    """Every piece takes so many seconds longer, in both directions."""
    deaf: bool = False
    """What is asked arrives, and is done; what is answered is lost, and whoever asked waits in vain."""
    answer: bytes | None = None
    """Every request is answered with this, and does not arrive."""
    most: int | None = None
    """The connection ends after so many bytes of answers."""


class Proxy:
    """Carries bytes to a port, and does wrong what it is told to; a context manager."""

    def __init__(self, port: int) -> None:
        """Begins to listen.

        Args:
            port: of 127.0.0.1, behind the proxy.
        """
        self.trouble = Trouble()
        self._target = port
        self._listener = socket.create_server((HOST, 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._closing = False
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    @contextlib.contextmanager
    def troubled(
        self,
        *,
        cut: bool = False,
        delay: float = 0.0,
        deaf: bool = False,
        answer: bytes | None = None,
        most: int | None = None,
    ) -> Iterator[None]:
        """Does wrong what is told (see `Trouble`) while the block runs."""
        self.trouble = Trouble(cut=cut, delay=delay, deaf=deaf, answer=answer, most=most)
        if cut:
            self.break_connections()
        try:
            yield
        finally:
            self.trouble = Trouble()

    def break_connections(self) -> None:
        """Ends all connections that are open."""
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            _end(connection)

    def close(self) -> None:
        """Ends."""
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
            if self.trouble.cut:
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
            while data := client.recv(PIECE):
                trouble = self.trouble
                if trouble.answer is not None:
                    client.sendall(trouble.answer)
                    break
                time.sleep(trouble.delay)
                server.sendall(data)
            else:
                # The client has no more to ask; what is on its way back may still arrive.
                server.shutdown(socket.SHUT_WR)
                return
        _end(client)
        _end(server)

    def _carry_answers(self, server: socket.socket, client: socket.socket) -> None:
        carried, lost = 0, False
        with contextlib.suppress(OSError):
            while data := server.recv(PIECE):
                trouble = self.trouble
                if trouble.deaf:
                    lost = True
                    continue
                if lost:
                    break  # What comes now would be taken for the answer that was lost.
                if trouble.most is not None:
                    data = data[: max(0, trouble.most - carried)]
                    carried += len(data)
                time.sleep(trouble.delay)
                client.sendall(data)
                if trouble.most is not None and carried >= trouble.most:
                    break
        _end(client)
        _end(server)


def _end(connection: socket.socket) -> None:
    """Wakes up whoever waits for a connection; it is closed by its own thread."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
