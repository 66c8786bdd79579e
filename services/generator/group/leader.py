"""The leader of a group: it waits for the others, tells them what to do, and hears from them."""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final, NoReturn, Self

from smalti.engines.encoding import Encoding
from smalti.entrance import streams
from smalti.errors import EngineFailedError
from smalti.network import address_of, cannot_listen
from smalti.services.generator.group import runtime
from smalti.services.generator.group.common import difference
from smalti.services.generator.group.frames import Frame, encoding_frame
from smalti.services.generator.group.peer import HANDSHAKE_SECONDS, Peer, PeerLostError
from smalti.services.generator.settings import GROUP_PREFIX, GroupSettings

log = logging.getLogger(__name__)

FAILED_START: Final = 1
"""Exit code of a process whose group breaks up while it starts."""


class GroupError(Exception):
    """The processes of a group cannot go on together; says why."""


def end_process(problem: str) -> NoReturn:
    """Ends a process whose group breaks up while it starts: its main thread may wait in JAX, which would wait on."""
    streams.write_line(f"smalti generator: {problem}")
    os._exit(FAILED_START)


class Leader:
    """The other processes of the group, as the leader knows them. `send` is for one thread."""

    def __init__(self, group: GroupSettings, followers: Mapping[int, Peer]) -> None:
        """Takes the connections to all others, by index; see `gather`."""
        self._followers = dict(followers)
        self._lost: Callable[[GroupError], None] = lambda error: end_process(str(error))
        self._stopping = threading.Event()
        for index, peer in self._followers.items():
            peer.watch(
                lambda frame, index=index: self._hear(index, frame),  # type: ignore[misc]
                lambda problem, index=index: self._lose(f"process {index} of the group {problem}"),  # type: ignore[misc]
                group.silence,
            )

    @classmethod
    def gather(cls, group: GroupSettings, common: Mapping[str, str]) -> Self:
        """Waits until all others have come, refuses those that differ, and joins JAX with them.

        Args:
            group: the settings.
            common: what all must have in common.

        Raises:
            InvalidInputError: the port cannot be used.
            EngineFailedError: the others have not come in time.
        """
        host = runtime.bind_address(group.leader or "")
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            server = socket.create_server(
                (host, group.port), family=family, dualstack_ipv6=host == "::" and socket.has_dualstack_ipv6()
            )
        except OSError as error:
            raise cannot_listen(GROUP_PREFIX, host, group.port) from error
        log.info("waiting for %d others at %s", group.size - 1, address_of(host, group.port))
        with server:
            followers = accept_all(server, group, common)
        for peer in followers.values():
            peer.send(Frame(do="welcome"))
        leader = cls(group, followers)
        runtime.join(group)
        return leader

    @property
    def stopping(self) -> bool:
        """Whether another process of the group was asked to stop, so that this one should drain."""
        return self._stopping.is_set()

    def watch(self, lost: Callable[[GroupError], None]) -> None:
        """Has a function called when another process is gone or fails, in place of ending this process."""
        self._lost = lost

    def begin(self, unconditional: Encoding) -> None:
        """Has the others load the model."""
        self.send(encoding_frame("begin", unconditional))

    def send(self, frame: Frame) -> None:
        """Tells all others; those that are gone are reported as `watch` says."""
        for peer in self._followers.values():
            peer.send(frame)

    def end(self) -> None:
        """Has the others end, and leaves JAX with them."""
        self.send(Frame(do="end"))
        self._lost = lambda error: log.info("at the end, %s", error)
        runtime.leave()
        for peer in self._followers.values():
            peer.close()

    def _hear(self, index: int, frame: Frame) -> None:
        if frame.do == "stopping":
            log.info("process %d of the group was asked to stop, and this one drains", index)
            self._stopping.set()
        elif frame.do == "failed":
            self._lose(f"process {index} of the group has failed: {frame.values['problem']}")

    def _lose(self, problem: str) -> None:
        self._lost(GroupError(problem))


def accept_all(server: socket.socket, group: GroupSettings, common: Mapping[str, str]) -> dict[int, Peer]:
    """Returns the connections to all others, by index."""
    followers: dict[int, Peer] = {}
    refused = ""
    deadline = time.monotonic() + group.wait
    secret = group.secret.get_secret_value().encode() if group.secret else b""
    while len(followers) < group.size - 1:
        server.settimeout(max(0.01, deadline - time.monotonic()))
        try:
            accepted, _ = server.accept()
            index, peer = _admit(accepted, secret, group, common, followers)
        except TimeoutError:
            come = ", ".join(map(str, [0, *sorted(followers)]))
            raise EngineFailedError(
                f"of the {group.size} processes of the group, only these came within {group.wait:g} s: {come}"
                f"{f' (refused: {refused})' if refused else ''}; start the others",
                begun=False,
            ) from None
        except (PeerLostError, OSError) as error:
            refused = str(error)
            log.warning("a process cannot join the group: %s", refused)
            continue
        followers[index] = peer
        # One that has ended meanwhile, and comes again, is waited for.
        followers = {each: peer for each, peer in followers.items() if not peer.gone}
    return followers


def _admit(
    accepted: socket.socket,
    secret: bytes,
    group: GroupSettings,
    common: Mapping[str, str],
    followers: Mapping[int, Peer],
) -> tuple[int, Peer]:
    """Returns the index of a process that has connected, and the connection; raises `PeerLostError` if it differs."""
    peer = Peer.accept(accepted, secret)
    hello = peer.receive(HANDSHAKE_SECONDS)
    index = int(hello.values.get("index", 0))
    problem = difference(common, hello.values.get("common", {}))
    if not problem and not 0 < index < group.size:
        problem = f"{GROUP_PREFIX}INDEX must be from 1 to {group.size - 1}, not {index}"
    if not problem and index in followers and not followers[index].gone:
        problem = f"{GROUP_PREFIX}INDEX {index} is that of another process of the group; give each its own"
    if problem:
        peer.send(Frame(do="refused", values={"problem": problem}))
        raise PeerLostError(f"the process at {peer.address} was refused: {problem}")
    return index, peer
