"""The generator's messages."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load

from harness.generator import TokenCounter, is_idle
from harness.objects import get_named, keys_of, put_named
from harness.queue import task
from harness.service import bare_process
from harness.waiting import wait_until
from smalti.engines.generator.engine import GeneratorEngine
from smalti.engines.generator.given import kept_by
from smalti.engines.generator.requests import Candidate, GenerationRequest
from smalti.errors import InvalidInputError
from smalti.messages import MAX_CLOCK_SKEW_SECONDS, Chunk, Message, Progress, StageDone
from smalti.parameters import FREE
from smalti.pipeline import Pipeline
from smalti.queue import Delivery, GiveBackError, PermanentError
from smalti.registry.folder import ModelFolder
from smalti.registry.spec import ModelSpec
from smalti.service.cancellation import Cancellations
from smalti.service.objects import encoding_bytes
from smalti.services.generator import handler
from smalti.services.generator.handler import GenerateHandler
from smalti.storage import JobKeys, MemoryStore
from smalti.testing.publisher import MemoryPublisher
from tests.services.generator.conftest import PROMPT, SLOTS

MANY = Chunk(chunk=0, candidates=tuple(range(40)))


class BusyPublisher(MemoryPublisher):
    """Takes a progress event only after two more rows, as if those between were drawn too soon after another."""

    def __init__(self) -> None:
        super().__init__()
        self._rows = 0

    def offer(self, message: Message) -> bool:
        assert isinstance(message, Progress)
        if message.rows < self._rows + 2:
            return False
        self._rows = message.rows
        return super().offer(message)


class Work:
    """Handles a message in a thread."""

    def __init__(
        self,
        engine: GeneratorEngine,
        tiny: ModelFolder,
        pipeline: Pipeline,
        publisher: MemoryPublisher | None = None,
        **changes: Any,
    ) -> None:
        self.store = MemoryStore()
        process = bare_process(self.store)
        handle = GenerateHandler(
            process=process,
            spec=ModelSpec.load(tiny),
            cancellations=Cancellations(process.store, 0.02),
            engine=engine,
        )
        self.publisher = handle.publisher = publisher or MemoryPublisher()
        encoding = put_named(
            self.store, JobKeys("j1").encoding, encoding_bytes(pipeline.encoder.encode(PROMPT))
        )
        whole: dict[str, Any] = {"chunks": (Chunk(chunk=0, candidates=(0, 1, 2, 3)),), **changes}
        [self.task] = task("j1", PROMPT, model=tiny, **whole).next(encoding, PROMPT)
        self.draining = threading.Event()
        self.handler = handle
        self.pool = ThreadPoolExecutor(1)
        self.messages = self.pool.submit(lambda: list(handle(Delivery(self.task, self.draining))))

    def close(self) -> None:
        self.pool.shutdown()
        self.handler.close()


def test_cancelled_job_frees_its_slots_and_stops(
    engine: GeneratorEngine, tiny: ModelFolder, pipeline: Pipeline, slow: None, generated: TokenCounter
) -> None:
    work = Work(engine, tiny, pipeline, chunks=(MANY,))
    wait_until(lambda: engine.active == SLOTS)
    work.store.put(JobKeys("j1").cancelled, b'{"reason": "cancelled"}')
    with pytest.raises(PermanentError) as caught:
        work.messages.result(60)
    assert caught.value.reason == "cancelled"
    wait_until(lambda: is_idle(engine))
    assert not keys_of(work.store, work.task.keys.tokens(0))
    assert generated.tokens < 40 * 16
    work.close()


def test_expired_job_is_dropped(
    engine: GeneratorEngine, tiny: ModelFolder, pipeline: Pipeline, slow: None
) -> None:
    work = Work(engine, tiny, pipeline, expires=time.time() + 0.15 - MAX_CLOCK_SKEW_SECONDS)
    with pytest.raises(PermanentError) as caught:
        work.messages.result(60)
    assert caught.value.reason == "expired"
    wait_until(lambda: is_idle(engine))
    work.close()


def test_draining_worker_gives_back_long_work(
    engine: GeneratorEngine, tiny: ModelFolder, pipeline: Pipeline, slow: None, generated: TokenCounter
) -> None:
    work = Work(engine, tiny, pipeline, chunks=(MANY,))
    wait_until(lambda: engine.active == SLOTS)
    work.draining.set()
    with pytest.raises(GiveBackError):
        work.messages.result(60)
    wait_until(lambda: is_idle(engine))
    assert generated.tokens < 40 * 16
    work.close()


def test_draining_worker_finishes_short_work(
    engine: GeneratorEngine, tiny: ModelFolder, pipeline: Pipeline, slow: None
) -> None:
    work = Work(engine, tiny, pipeline)
    wait_until(lambda: engine.active == SLOTS and engine.timing.dispatch_seconds > 0)
    # A draining worker finishes only candidates that have started; after the first row, all have.
    began = engine.timing.last_beat
    wait_until(lambda: engine.timing.last_beat > began + 0.15)
    work.draining.set()
    _, done = work.messages.result(60)
    assert isinstance(done, StageDone)
    work.close()


def test_waiting_for_a_full_engine_costs_no_attempt(
    engine: GeneratorEngine, tiny: ModelFolder, pipeline: Pipeline, slow: None
) -> None:
    candidates = tuple(Candidate(1, index, tiny.sampling) for index in range(10))
    flood = engine.submit(
        GenerationRequest(encodings=(pipeline.encoder.encode("flood"),), candidates=candidates)
    )
    wait_until(lambda: engine.waiting == 6)
    work = Work(engine, tiny, pipeline)
    _, done = work.messages.result(60)
    assert isinstance(done, StageDone)
    assert done.attempt == 1
    assert flood.done
    work.close()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"given": (0,) * 16}, "has 16 tokens; of the 16 of a picture, one must be left to draw"),
        ({"given": (FREE,) * 17}, "has 17 tokens; of the 16 of a picture, one must be left to draw"),
        ({"given": (64,)}, "must be below 64"),
        ({"given": (0,) * 15, "strength": 0.5}, "has 15 tokens; with strength, it must have 16"),
    ],
)
def test_invalid_given_tokens_are_refused(
    engine: GeneratorEngine, tiny: ModelFolder, pipeline: Pipeline, changes: dict[str, Any], problem: str
) -> None:
    work = Work(engine, tiny, pipeline, **changes)
    with pytest.raises(InvalidInputError, match=problem):
        work.messages.result(60)
    work.close()


def test_progress_has_every_row_once(
    engine: GeneratorEngine,
    tiny: ModelFolder,
    pipeline: Pipeline,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(handler, "PROGRESS_SECONDS", 0)
    work = Work(engine, tiny, pipeline, BusyPublisher())
    work.messages.result(60)
    drawn = load(get_named(work.store, JobKeys("j1").tokens(0)))["tokens"]
    events = [each for each in work.publisher.take() if isinstance(each, Progress)]
    assert events[-1].rows > len(events)
    told = np.concatenate([np.array(each.tokens) for each in events], axis=1)
    assert (told == drawn[:, : events[-1].rows * 4]).all()
    work.close()


def test_progress_has_the_last_rows_that_an_event_can_hold(
    engine: GeneratorEngine,
    tiny: ModelFolder,
    pipeline: Pipeline,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(handler, "PROGRESS_SECONDS", 0)
    monkeypatch.setattr(handler, "MAX_EVENT_TOKENS", 16)  # A row of each of the four candidates.
    work = Work(engine, tiny, pipeline, BusyPublisher())
    work.messages.result(60)
    drawn = load(get_named(work.store, JobKeys("j1").tokens(0)))["tokens"]
    event = next(each for each in work.publisher.take() if isinstance(each, Progress))
    assert event.rows > 1
    assert (np.array(event.tokens) == drawn[:, 4 * event.rows - 4 : 4 * event.rows]).all()
    work.close()


def test_tokens_are_kept_wherever_they_are(
    engine: GeneratorEngine, tiny: ModelFolder, pipeline: Pipeline
) -> None:
    for changes, kept in (
        ({"given": (FREE, 3, *(9,) * 12, FREE, 3)}, 14),
        ({"given": (9,) * 16, "strength": 0.25}, 12),
    ):
        work = Work(engine, tiny, pipeline, **changes)
        work.messages.result(60)
        tokens = load(get_named(work.store, JobKeys("j1").tokens(0)))["tokens"]
        given = np.array(
            [kept_by(work.task.given, work.task.strength, work.task.seed, index) for index in range(4)]
        )
        assert ((tokens == given).sum(axis=1) == kept).all()
        # A task that comes alone gives the same tokens as within the chunk.
        alone = Work(engine, tiny, pipeline, chunks=(Chunk(chunk=0, candidates=(2,)),), **changes)
        alone.messages.result(60)
        np.testing.assert_array_equal(
            load(get_named(alone.store, JobKeys("j1").tokens(0)))["tokens"][0], tokens[2]
        )
        for each in (work, alone):
            each.close()
