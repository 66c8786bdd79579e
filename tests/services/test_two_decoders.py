"""Two workers that write different bytes for the same work: a job that has succeeded keeps the pictures it was told."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.gateway import GatewayHarness, sqlite_database
from harness.objects import keys_of
from harness.service import bare_process
from harness.stages import RealStages
from harness.waiting import WAIT
from smalti.engines.decoder import DecoderEngine
from smalti.messages import DecodeTask, EncodeTask, Event, Message, RankTask
from smalti.pipeline import Pipeline
from smalti.queue import Delivery
from smalti.registry.folder import ModelFolder
from smalti.registry.spec import ModelSpec
from smalti.service.cancellation import Cancellations
from smalti.service.compute import ComputeThread
from smalti.services.decoder.handler import DecodeHandler
from smalti.storage import JobKeys, digest


class OtherDecoder(DecoderEngine):
    """A decoder whose pixels differ a little, as those of another machine may; it can be paused in the middle."""

    def __init__(self, engine: DecoderEngine) -> None:
        """Uses the network of an engine."""
        super().__init__(engine.vqgan, batch_size=engine.batch_size)
        self.decoded = threading.Event()
        """Set once pixels are computed."""
        self.released = threading.Event()
        """Set to let it go on."""

    def decode(self, tokens: np.ndarray) -> np.ndarray:
        """Decodes, and waits until the test lets it go on."""
        pixels = super().decode(tokens) ^ 1
        self.decoded.set()
        assert self.released.wait(WAIT)
        return pixels


@pytest.fixture
def other(stages: RealStages, worded: ModelFolder, pipeline: Pipeline) -> Iterator[DecodeHandler]:
    """The handler of a decoder of the other kind."""
    compute = ComputeThread(max_permits=2, stall_seconds=60, check=lambda: None)
    made = DecodeHandler(
        process=bare_process(stages.store),
        spec=ModelSpec.load(worded),
        cancellations=Cancellations(stages.store, 1.0),
        engine=OtherDecoder(pipeline.decoder),
        compute=compute,
        rewriter=stages.rewriter,
    )
    yield made
    made.close()
    compute.close()


@pytest.fixture
def gateway(tmp_path: Path, stages: RealStages, worded: ModelFolder) -> Iterator[GatewayHarness]:
    """A gateway on the store of the stages."""
    with closing(sqlite_database(tmp_path)) as database:
        made = GatewayHarness(database, ModelSpec.load(worded), store=stages.store)
        yield made
        made.close()


def decode_tasks(stages: RealStages, task: EncodeTask) -> tuple[list[DecodeTask], list[Any]]:
    """Runs the first two stages; returns the tasks of the decoder, and the events."""
    decodes: list[DecodeTask] = []
    events: list[Any] = []
    waiting: list[Message] = [task]
    while waiting:
        message = waiting.pop()
        if isinstance(message, Event):
            events.append(message)
        elif isinstance(message, DecodeTask):
            decodes.append(message)
        else:
            waiting += stages.handlers[message.stage_queue](Delivery(message, threading.Event()))
    return decodes, events


def check_pictures(gateway: GatewayHarness, job: str) -> None:
    """Checks that the pictures of a succeeded job are there, and are what was ranked."""
    snapshot = gateway.get(job)
    assert snapshot.job.state == "succeeded"
    assert len(snapshot.pictures) == 3
    for picture in snapshot.pictures:
        # A URL gives whatever has this key.
        assert digest(gateway.store.get(picture.key)) == picture.sha256


def test_a_decoder_that_was_paused_does_not_take_the_pictures_of_a_job(
    stages: RealStages, gateway: GatewayHarness, other: DecodeHandler
) -> None:
    job = gateway.create("a red cat")
    (task,) = gateway.send()
    decodes, events = decode_tasks(stages, task)
    gateway.handle(*events)
    first, *rest = decodes
    engine = other._engine
    assert isinstance(engine, OtherDecoder)
    with ThreadPoolExecutor(1) as threads:
        paused = threads.submit(lambda: list(other(Delivery(first, threading.Event()))))
        assert engine.decoded.wait(WAIT)
        ranks: list[Any] = [
            message
            for decode in (first, *rest)
            for message in stages.messages(decode)
            if message is not decode
        ]
        done = [message for message in ranks if not isinstance(message, DecodeTask | RankTask)]
        gateway.handle(*done)
        check_pictures(gateway, job)
        engine.released.set()
        late = paused.result(WAIT)
    check_pictures(gateway, job)
    # Whoever was first has decided what the next stage works on.
    decided = next(
        message for message in ranks if isinstance(message, RankTask) and message.chunk == first.chunk
    )
    (rank,) = [message for message in late if isinstance(message, RankTask)]
    assert rank.pictures == decided.pictures
    later: list[Any] = [event for message in late for event in stages.run(message)]
    gateway.handle(*later)
    check_pictures(gateway, job)
    # What nobody will ask for is deleted, once nobody works on the job any more.
    names = [JobKeys(job).candidate(index) for index in first.candidates]
    assert all(len(keys_of(gateway.store, name)) == 2 for name in names)
    gateway.pass_time(1400)
    check_pictures(gateway, job)
    assert all(len(keys_of(gateway.store, name)) == 1 for name in names)


def test_lost_objects_of_the_first_writer_are_replaced_by_those_of_the_next(
    stages: RealStages, gateway: GatewayHarness, other: DecodeHandler
) -> None:
    job = gateway.create("a red cat")
    (task,) = gateway.send()
    decodes, events = decode_tasks(stages, task)
    gateway.handle(*events)
    first, *rest = decodes
    stages.messages(first)
    gateway.store.delete(*keys_of(gateway.store, JobKeys(job).candidate(first.candidates[0])))
    engine = other._engine
    assert isinstance(engine, OtherDecoder)
    engine.released.set()
    (rank, _) = other(Delivery(first, threading.Event()))
    assert isinstance(rank, RankTask)
    tasks: list[Any] = [rank, *rest]
    for message in tasks:
        ranked: list[Any] = stages.run(message)
        gateway.handle(*ranked)
    check_pictures(gateway, job)
    (again, done) = other(Delivery(first, threading.Event()))
    assert again == rank
    assert done.skipped  # type: ignore[union-attr]
