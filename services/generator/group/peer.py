"""A connection between two processes of a group: authenticated at its start, and watched until its end.

Python's `multiprocessing.connection` frames and authenticates; only bytes travel, never pickled objects. After the
start nothing is encrypted or signed, as in what JAX sends between the same processes.
"""

import contextlib
import math
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from typing import Any, Final, Self

from smalti.services.generator.group.frames import MAX_FRAME, Frame

HANDSHAKE_SECONDS: Final = 5.0
"""Time in which a process that connects must prove that it knows the secret, so that others cannot block the port."""
BEAT: Final = Frame(do="beat")
BEATS_PER_SILENCE: Final = 6
"""Signs of life that are sent in the time after which a silent process counts as gone."""


class PeerLostError(Exception):
    """The process at the other end is gone, or does not belong to the group; says why."""


class WrongSecretError(PeerLostError):
    """The process at the other end has another secret."""


class Peer:
    """The process at the other end."""

    def __init__(self, connection: "Connection[bytes, bytes]", address: str) -> None:
        """Takes an authenticated connection; see `accept` and `connect`."""
        self.address = address
        self._connection = connection
        self._sending = threading.Lock()
        self._closed = threading.Event()
        self._lost: Callable[[str], None] = lambda problem: None

    @classmethod
    def accept(cls, accepted: socket.socket, secret: bytes) -> Self:
        """Authenticates a process that has connected, and this one to it; raises `PeerLostError`."""
        return cls._authenticate(accepted, secret, deliver_challenge, answer_challenge)

    @classmethod
    def connect(cls, host: str, port: int, secret: bytes) -> Self:
        """Connects to a process, and authenticates both; raises `PeerLostError` or `OSError`."""
        connected = socket.create_connection((host, port), HANDSHAKE_SECONDS)
        return cls._authenticate(connected, secret, answer_challenge, deliver_challenge)

    @classmethod
    def _authenticate(
        cls, socket_: socket.socket, secret: bytes, *steps: Callable[[Any, bytes], None]
    ) -> Self:
        host = str(socket_.getpeername()[0])
        socket_.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        socket_.setblocking(True)
        _limit_reads(socket_.fileno(), HANDSHAKE_SECONDS)
        connection: Connection[bytes, bytes] = Connection(socket_.detach())
        try:
            for step in steps:
                step(connection, secret)
        except (AuthenticationError, OSError, EOFError, ValueError) as error:
            connection.close()
            if isinstance(error, AuthenticationError):
                raise WrongSecretError(f"the process at {host} has another secret") from error
            raise PeerLostError(
                f"the process at {host} does not prove that it knows the secret: {error!r}"
            ) from error
        return cls(connection, host)

    @property
    def gone(self) -> bool:
        """Whether a process that should be silent has closed its end, or speaks."""
        try:
            return self._connection.poll(0)
        except OSError:
            return True

    def receive(self, seconds: float) -> Frame:
        """Waits for a frame; raises `PeerLostError` if none comes in time, or none can come."""
        try:
            if not self._connection.poll(seconds):
                raise PeerLostError(f"has said nothing for {seconds:g} s")
            return Frame.parse(self._connection.recv_bytes(MAX_FRAME))
        except EOFError:
            raise PeerLostError("has ended") from None
        except (OSError, ValueError) as error:
            raise PeerLostError(f"cannot be heard: {error!r}") from error

    def send(self, frame: Frame) -> None:
        """Sends a frame; that the process is gone is told as `watch` says."""
        try:
            with self._sending:
                self._connection.send_bytes(frame.to_bytes())
        except OSError as error:
            self._tell_lost(f"cannot be reached: {error!r}")

    def watch(self, heard: Callable[[Frame], None], lost: Callable[[str], None], silence: float) -> None:
        """Listens from now on, and shows that this process lives.

        Args:
            heard: called with each frame, on a thread of this connection; must be quick.
            lost: called once when the process is gone, with the reason.
            silence: seconds without a frame after which it counts as gone.
        """
        self._lost = lost
        _limit_reads(self._connection.fileno(), silence)

        def listen() -> None:
            while not self._closed.is_set():
                try:
                    frame = self.receive(silence)
                except PeerLostError as error:
                    self._tell_lost(str(error))
                    return
                if frame != BEAT:
                    heard(frame)

        def beat() -> None:
            while not self._closed.wait(silence / BEATS_PER_SILENCE):
                self.send(BEAT)

        for name, target in (("listen", listen), ("beat", beat)):
            threading.Thread(target=target, name=f"group-{name}", daemon=True).start()

    def close(self) -> None:
        """Ends the connection; nothing is told of it here."""
        self._closed.set()
        # The file stays open, since a thread may still read from it.
        with contextlib.suppress(OSError), _borrowed(self._connection.fileno()) as borrowed:
            borrowed.shutdown(socket.SHUT_RDWR)

    def _tell_lost(self, problem: str) -> None:
        if not self._closed.is_set():
            self._closed.set()
            self._lost(problem)


def _limit_reads(file: int, seconds: float) -> None:
    """Limits how long a read from a socket may wait for the rest of a frame."""
    with _borrowed(file) as borrowed:
        borrowed.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", math.ceil(seconds), 0))


@contextlib.contextmanager
def _borrowed(file: int) -> Iterator[socket.socket]:
    """Makes a socket of a connection's file, and leaves the file open."""
    borrowed = socket.socket(fileno=file)
    try:
        yield borrowed
    finally:
        borrowed.detach()
