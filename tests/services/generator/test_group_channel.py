"""How the processes of a group find each other, what is refused, and what a follower is told."""

import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Int

from harness.servers import HOST, free_port
from harness.waiting import wait_until
from smalti.engines.encoding import Encoding
from smalti.engines.generator.requests import Candidate
from smalti.engines.generator.state import Prefix
from smalti.errors import EngineFailedError, InvalidInputError
from smalti.parameters import FREE, SamplingParameters
from smalti.services.generator.group import Follower, Leader, LeadingBatch
from smalti.services.generator.group.follower import find_leader
from smalti.services.generator.group.frames import Frame
from smalti.services.generator.group.leader import GroupError, accept_all
from smalti.services.generator.group.peer import Peer
from smalti.services.generator.settings import LEADER_WORKER_SET, GroupSettings, group_settings

COMMON = {"the version of JAX": "0.10.2", "SMALTI_SERVICE_SLOTS": "16"}
EMPTY = Encoding(np.zeros((2, 3), np.float32), np.ones(2, np.int32))


def settings(port: int, **changes: Any) -> GroupSettings:
    values = {
        "size": 2,
        "index": 0,
        "leader": HOST,
        "port": port,
        "secret": "a secret of a test",
        "wait": 30.0,
        "silence": 20.0,
    }
    return GroupSettings(**{**values, **changes})


@contextmanager
def gathered(
    leaders: Mapping[str, Any] = {}, followers: Mapping[str, Any] = {}, common: Mapping[str, str] = COMMON
) -> Iterator[tuple[GroupSettings, dict[int, Peer], Peer]]:
    """Connects two processes of a group, and yields both ends."""
    port = free_port()
    leads, follows = settings(port, **leaders), settings(port, **{"index": 1, **followers})
    with socket.create_server((HOST, port)) as server, ThreadPoolExecutor() as threads:
        accepting = threads.submit(accept_all, server, leads, COMMON)
        finding = threads.submit(find_leader, follows, common)
        if accepting.exception() is None:
            for peer in accepting.result().values():
                peer.send(Frame(do="welcome"))
        peer, found = finding.result(), accepting.result()
    try:
        yield leads, found, peer
    finally:
        for each in (peer, *found.values()):
            each.close()


class RecordingBatch:
    """A batch that notes the calls, and returns what a batch returns."""

    slots, steps_per_dispatch, image_length = 4, 2, 16

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def warm_up(self, *, everything: bool) -> None:
        self.calls.append(("warm_up", everything))

    def prefill(self, encoding: Encoding) -> Prefix:
        self.calls.append(("prefill", encoding.states.tolist(), encoding.mask.tolist()))
        return Prefix((), jnp.ones((1, len(self.calls)), bool))

    def insert(self, prefix: Prefix, slots: Sequence[int], candidates: Sequence[Candidate]) -> None:
        self.calls.append(("insert", prefix.mask.shape, list(slots), list(candidates)))

    def release(self, slots: Sequence[int]) -> None:
        self.calls.append(("release", list(slots)))

    def step(self) -> Int[np.ndarray, "slots steps"]:
        self.calls.append("step")
        return np.zeros((4, 2), np.int32)

    def check(self) -> None:
        self.calls.append("check")

    def reset(self) -> None:
        self.calls.append("reset")
        raise RuntimeError("no memory")


def test_follower_makes_the_calls_of_its_leader() -> None:
    ours, theirs, begun = RecordingBatch(), RecordingBatch(), []

    def make_batch(unconditional: Encoding) -> RecordingBatch:
        begun.append(unconditional.mask.tolist())
        return theirs

    lost: list[GroupError] = []
    with gathered() as (group, followers, peer):
        leader = Leader(group, followers)
        leader.watch(lost.append)
        follower = Follower(group, peer, make_batch)
        follower.follow()
        leader.begin(EMPTY)
        batch = LeadingBatch(ours, leader)
        batch.warm_up(everything=True)
        first = batch.prefill(Encoding(np.array([[0.1, -2, 3e-20]], np.float32), np.array([1], np.int32)))
        second = batch.prefill(EMPTY)
        sampling = SamplingParameters(top_k=3, layout_share=0.5, layout_temperature=0.25)
        batch.insert(
            second, [3, 1], [Candidate(2**63 - 1, 5, sampling, given=(7, FREE)), Candidate(1, 2, sampling)]
        )
        batch.insert(first, [0], [])
        batch.release([2])
        batch.step()
        batch.check()
        wait_until(lambda: theirs.calls == ours.calls)
        assert len(ours.calls) == 8
        assert begun == [[1, 1]]
        assert follower.ready.is_set()
        del first
        batch.step()
        wait_until(lambda: list(follower._prefixes) == [2])
        # A call that fails may have been made by the others: no other one follows, and the leader hears of it.
        with pytest.raises(RuntimeError, match="no memory"):
            batch.reset()
        with pytest.raises(GroupError, match="may have made it"):
            batch.step()
        wait_until(lambda: bool(lost) and not follower.healthy)
        assert "process 1 of the group has failed: RuntimeError('no memory')" in str(lost[0])


def test_each_hears_when_the_other_is_gone_or_stops() -> None:
    lost: list[str] = []
    with gathered() as (group, followers, peer):
        leader = Leader(group, followers)
        leader.watch(lambda error: lost.append(str(error)))
        peer.send(Frame(do="stopping"))
        wait_until(lambda: leader.stopping)
        assert not lost
        peer.close()
        wait_until(lambda: lost == ["process 1 of the group has ended"])
    lost.clear()
    with gathered(leaders={"silence": 0.2}) as (group, followers, _):
        Leader(group, followers).watch(lambda error: lost.append(str(error)))
        wait_until(lambda: lost == ["process 1 of the group has said nothing for 0.2 s"])


@pytest.mark.parametrize(
    ("changes", "common", "problem"),
    [
        (
            {},
            {**COMMON, "SMALTI_SERVICE_SLOTS": "8"},
            "SMALTI_GROUP_LEADER: refuses this process: SMALTI_SERVICE_SLOTS is 8 here, but 16 in the leader",
        ),
        ({}, {}, "SMALTI_GROUP_LEADER: refuses this process: the version of JAX is unknown here"),
        ({"index": 2}, COMMON, "SMALTI_GROUP_LEADER: .* SMALTI_GROUP_INDEX must be from 1 to 1, not 2"),
        (
            {"secret": "another secret of it"},
            COMMON,
            "SMALTI_GROUP_SECRET: is not that of the leader at 127.0.0.1:",
        ),
    ],
)
def test_process_that_differs_is_refused(
    changes: Mapping[str, Any], common: Mapping[str, str], problem: str
) -> None:
    with pytest.raises(InvalidInputError, match=problem), gathered({"wait": 1.0}, changes, common):
        pass


def test_leader_waits_for_all_and_no_longer_than_it_may() -> None:
    port = free_port()
    group = settings(port, wait=0.5)
    with socket.create_server((HOST, port)) as server, socket.create_connection((HOST, port)) as stranger:
        stranger.send(b"\0\0\0\x14GET / HTTP/1.1 and more")
        with pytest.raises(
            EngineFailedError, match=r"only these came within 0\.5 s: 0 \(refused: the process at"
        ):
            accept_all(server, group, COMMON)
    with pytest.raises(
        EngineFailedError, match=r"the leader of the group at 127\.0\.0\.1:\d+ did not come within"
    ):
        find_leader(settings(port, wait=0.1, index=1), COMMON)


def test_index_that_is_taken_is_refused_until_its_process_is_gone() -> None:
    port = free_port()
    leads, follows = settings(port, size=3), settings(port, size=3, index=1)
    with socket.create_server((HOST, port)) as server, ThreadPoolExecutor() as threads:
        accepting = threads.submit(accept_all, server, leads, COMMON)
        first = Peer.connect(HOST, port, b"a secret of a test")
        first.send(Frame(do="hello", values={"index": 1, "common": COMMON}))
        with pytest.raises(InvalidInputError, match="SMALTI_GROUP_INDEX 1 is that of another process"):
            find_leader(follows, COMMON)
        first.close()
        again = threading.Thread(target=find_leader, args=(follows, COMMON))
        again.start()
        other = threads.submit(find_leader, settings(port, size=3, index=2), COMMON)
        found = accepting.result(30)
        assert sorted(found) == [1, 2]
        for peer in found.values():
            peer.send(Frame(do="welcome"))
        again.join()
        for peer in (other.result(), *found.values()):
            peer.close()


def test_settings_of_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    assert group_settings().size == 1
    for name, value in zip(LEADER_WORKER_SET.values(), ("4", "3", "smalti-0.smalti.default"), strict=True):
        monkeypatch.setenv(name, value)
    for name, value, problem in (
        ("SECRET", "short", "SMALTI_GROUP_SECRET: must have at least 16 characters"),
        (
            "SECRET",
            "a secret of a test",
            "SMALTI_GROUP_PLAINTEXT: .*in plaintext with smalti-0.smalti.default",
        ),
        ("PLAINTEXT", "1", ""),
        ("INDEX", "4", "SMALTI_GROUP_INDEX: 4 must be below SMALTI_GROUP_SIZE, which is 4"),
        ("INDEX", "0", ""),
        ("COORDINATOR_PORT", "8475", "SMALTI_GROUP_PORT: must not be SMALTI_GROUP_COORDINATOR_PORT"),
    ):
        monkeypatch.setenv(f"SMALTI_GROUP_{name}", value)
        if problem:
            with pytest.raises(InvalidInputError, match=f"^{problem}"):
                group_settings()
        else:
            found = group_settings()
            assert (found.size, found.leader) == (4, "smalti-0.smalti.default")
    monkeypatch.delenv("LWS_LEADER_ADDRESS")
    with pytest.raises(InvalidInputError, match=r"^SMALTI_GROUP_LEADER: is not set"):
        group_settings()
