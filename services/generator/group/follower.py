"""A follower: it makes the calls that the leader makes, and nothing else."""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final, Self

from smalti.engines.encoding import Encoding
from smalti.engines.generator.batch import Batch
from smalti.engines.generator.state import Prefix
from smalti.errors import EngineFailedError, InvalidInputError
from smalti.network import address_of
from smalti.services.generator.group import runtime
from smalti.services.generator.group.frames import Frame, candidate_in, encoding_in
from smalti.services.generator.group.leader import GroupError, end_process
from smalti.services.generator.group.peer import Peer, PeerLostError, WrongSecretError
from smalti.services.generator.settings import GROUP_PREFIX, GroupSettings

log = logging.getLogger(__name__)

RETRY_SECONDS: Final = 0.5
"""Interval between attempts to reach a leader that is not there yet."""

MakeBatch = Callable[[Encoding], Batch]
"""Makes the batch of this process from the encoding of the empty prompt."""


class Follower:
    """The engine of a process that follows; it has no slots of its own, since the leader counts them.

    It stops last: asked to stop, it tells the leader, which drains, and follows until the leader says that all is done.
    """

    slots = active = waiting = 0

    def __init__(self, group: GroupSettings, leader: Peer, make_batch: MakeBatch) -> None:
        """Makes no calls until `follow`; see `join`.

        Args:
            group: the settings.
            leader: the connection to the leader.
            make_batch: makes the batch of this process.
        """
        self._leader = leader
        self._make_batch = make_batch
        self._batch: Batch | None = None
        self._prefixes: dict[int, Prefix] = {}
        self._frames: queue.SimpleQueue[Frame | None] = queue.SimpleQueue()
        self._failure: BaseException | None = None
        self._ended = threading.Event()
        self._lost: Callable[[str], None] = end_process
        self.ready = threading.Event()
        """Set once the programs are compiled."""
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)
        leader.watch(
            self._hear, lambda problem: self._lost(f"the leader of the group {problem}"), group.silence
        )

    @classmethod
    def join(cls, group: GroupSettings, common: Mapping[str, str], make_batch: MakeBatch) -> Self:
        """Waits for the leader, joins JAX with all others, and follows.

        Args:
            group: the settings.
            common: what all must have in common.
            make_batch: makes the batch of this process; called when all have joined.

        Raises:
            InvalidInputError: the leader refuses this process, because something differs.
            EngineFailedError: the leader has not come in time.
        """
        follower = cls(group, find_leader(group, common), make_batch)
        runtime.join(group)
        follower.follow()
        return follower

    def follow(self) -> None:
        """Makes the leader's calls from now on; before, a lost leader ends this process."""
        self._lost = self._lose
        self._thread.start()

    @property
    def healthy(self) -> bool:
        """Whether this process follows its leader."""
        return self._failure is None

    @property
    def failure(self) -> BaseException | None:
        """Why this process no longer follows."""
        return self._failure

    @property
    def ended(self) -> bool:
        """Whether the leader has said that all is done."""
        return self._ended.is_set()

    async def start(self) -> None:
        """Does nothing: it follows already."""

    async def stop(self, grace: float) -> None:
        """Tells the leader that this process was asked to stop, and follows until the leader says that all is done.

        How long that takes is the leader's to limit; the process's own limit is `SMALTI_SERVICE_GRACE`.
        """
        if self.healthy and not self.ended:
            self._leader.send(Frame(do="stopping"))
            while self.healthy and not self.ended:
                await asyncio.sleep(0.05)

    def close(self) -> None:
        """Ends; the leader has stopped before, or is gone."""
        self._frames.put(None)

    def leave(self) -> None:
        """Leaves JAX together with the others, if the leader said that all is done."""
        if self.ended and self.healthy:
            self._lost = lambda problem: log.info("at the end, %s", problem)
            runtime.leave()
            self._leader.close()

    def _hear(self, frame: Frame) -> None:
        if frame.do == "end":
            self._ended.set()
        else:
            self._frames.put(frame)

    def _lose(self, problem: str) -> None:
        if not self.ended and self._failure is None:
            self._failure = GroupError(problem)

    def _run(self) -> None:
        try:
            while (frame := self._frames.get()) is not None:
                self._make_call(frame)
        except BaseException as error:
            log.exception("a call failed that the leader makes too")
            self._failure = self._failure or error
            self._leader.send(Frame(do="failed", values={"problem": repr(error)}))

    def _make_call(self, frame: Frame) -> None:
        values = frame.values
        if frame.do == "begin":
            self._batch = self._make_batch(encoding_in(frame))
            return
        if self._batch is None:
            raise GroupError(f"the leader says {frame.do} before the model is loaded")
        match frame.do:
            case "warm_up":
                self._batch.warm_up(everything=values["everything"])
                self.ready.set()
            case "prefill":
                self._prefixes[values["prefix"]] = self._batch.prefill(encoding_in(frame))
            case "insert":
                candidates = [candidate_in(each) for each in values["candidates"]]
                self._batch.insert(self._prefixes[values["prefix"]], values["slots"], candidates)
            case "forget":
                del self._prefixes[values["prefix"]]
            case "release":
                self._batch.release(values["slots"])
            case "step":
                self._batch.step()
            case "check":
                self._batch.check()
            case "reset":
                self._batch.reset()
            case unknown:
                raise GroupError(f"the leader says {unknown}, which this version does not know")


def find_leader(group: GroupSettings, common: Mapping[str, str]) -> Peer:
    """Returns the connection to the leader, which has all processes of the group now."""
    deadline = time.monotonic() + group.wait
    address = address_of(group.leader or "", group.port)
    secret = group.secret.get_secret_value().encode() if group.secret else b""
    hello = Frame(do="hello", values={"index": group.index, "common": dict(common)})
    problem = ""
    log.info("looking for the leader at %s", address)
    while (left := deadline - time.monotonic()) > 0:
        try:
            peer = Peer.connect(group.leader or "", group.port, secret)
            peer.send(hello)
            answer = peer.receive(left)
        except WrongSecretError as error:
            raise InvalidInputError(
                f"{GROUP_PREFIX}SECRET", f"is not that of the leader at {address}"
            ) from error
        except (PeerLostError, OSError) as error:
            problem = str(error)
            time.sleep(RETRY_SECONDS)
            continue
        if answer.do == "welcome":
            return peer
        raise InvalidInputError(f"{GROUP_PREFIX}LEADER", f"refuses this process: {answer.values['problem']}")
    raise EngineFailedError(
        f"the leader of the group at {address} did not come within {group.wait:g} s ({problem})", begun=False
    )
