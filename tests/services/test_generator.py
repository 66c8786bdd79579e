"""The generator's calls and messages, in this process, and in one that crashes and drains."""

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from harness.grpc_server import asynchronous
from harness.queue import clear, events, gather, settings_for, wait_until
from harness.servers import S3Server, ValkeyServer
from harness.service import answer, bare_process, called
from harness.service_process import NOT_SERVING, ONCE, SERVING, ServiceProcess
from smalti.engines.generator.engine import GeneratorEngine
from smalti.engines.generator.requests import Candidate, GenerationRequest
from smalti.errors import InvalidInputError, ModelMismatchError, OverloadedError, RequestExpiredError
from smalti.messages import Chunk, EncodeTask, Progress, Stage, StageDone
from smalti.pipeline import Pipeline
from smalti.queue import BrokerPublisher, Delivery, GiveBackError, PermanentError
from smalti.registry.folder import ModelFolder
from smalti.registry.spec import ModelSpec
from smalti.rpc.channel import blocking_channel
from smalti.rpc.conversion import encoding_message
from smalti.rpc.server import Register
from smalti.service import failpoints
from smalti.service.cancellation import Cancellations
from smalti.service.model import model_reference
from smalti.service.objects import encoding_bytes, load_tokens
from smalti.services.generator.failing_batch import FailingBatch
from smalti.services.generator.handler import GenerateHandler
from smalti.services.generator.servicer import GeneratorServicer
from smalti.storage import JobKeys, MemoryStore, StoreSettings, find, open_store
from smalti.text.rewording import Rewording
from smalti.v1.encoder_pb2 import Encoding
from smalti.v1.generator_pb2 import GenerateRequest
from smalti.v1.generator_pb2_grpc import GeneratorServiceStub, add_GeneratorServiceServicer_to_server
from smalti.v1.sampling_pb2 import SamplingParameters
from smalti.v1.tokens_pb2 import ImageTokens

PROMPT = "a red fox"
SEED = 7
SLOTS = 4
MANY = Chunk(chunk=0, candidates=tuple(range(40)))


@pytest.fixture(scope="module")
def engine(tiny: ModelFolder, pipeline: Pipeline) -> Iterator[GeneratorEngine]:
    """A generator with few slots and a short queue; failpoints can slow it down."""
    made = GeneratorEngine.load(
        ModelSpec.load(tiny), pipeline.encoder.unconditional, slots=SLOTS, max_waiting=6, stall_seconds=60.0
    )
    made.batch = FailingBatch(made.batch)
    made.start()
    assert made.ready.wait(120)
    yield made
    made.close()


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Slows down every dispatch."""
    monkeypatch.setenv(failpoints.VARIABLE, "generate.engine-step=sleep:0.1")
    failpoints.arm()
    yield
    monkeypatch.undo()
    failpoints.arm()


class Counter:
    """Counts generated tokens."""

    def __init__(self) -> None:
        self.tokens = 0

    def stepped(self, seconds: float, active: int, slots: int, tokens: int) -> None:
        self.tokens += tokens


@pytest.fixture
def generated(engine: GeneratorEngine) -> Iterator[Counter]:
    """Counts the tokens that the engine generates during the test."""
    engine.observer = counter = Counter()
    yield counter
    engine.observer = None


@pytest.fixture(scope="module")
def encoding(tiny: ModelFolder, pipeline: Pipeline) -> Encoding:
    model = model_reference(tiny.name, tiny.revision)
    return encoding_message(pipeline.encoder.encode(PROMPT), model, Rewording(PROMPT))


@pytest.fixture
def register(engine: GeneratorEngine, tiny: ModelFolder) -> Register:
    servicer = GeneratorServicer(
        engine=engine, spec=ModelSpec.load(tiny), model=model_reference(tiny.name, tiny.revision)
    )
    return lambda server: add_GeneratorServiceServicer_to_server(servicer, server)


def is_idle(engine: GeneratorEngine) -> bool:
    return not engine.active and not engine.waiting


@asynchronous
async def test_rows_are_streamed(register: Register, encoding: Encoding, pipeline: Pipeline) -> None:
    expected = pipeline.generate_candidates(
        PROMPT, [0, 5, 9], seed=SEED, sampling=pipeline.folder.sampling, total=10
    )
    given = ImageTokens(tokens=expected[0].tokens[:3].tolist())
    async with called(register) as channel:
        stub = GeneratorServiceStub(channel)
        request = GenerateRequest(encoding=encoding, seed=SEED, candidates=[0, 5, 9])
        first, *between, last = await answer(stub.Generate(request))
        assert (first.started.seed, first.started.rows, first.started.columns) == (SEED, 4, 4)
        assert first.started.sampling.top_k == pipeline.folder.sampling.top_k
        drawn: dict[int, list[int]] = {0: [], 5: [], 9: []}
        for message in between:
            runs = message.rows.runs
            assert len({run.candidate for run in runs}) == len(runs)
            for run in runs:
                assert run.start == len(drawn[run.candidate])
                drawn[run.candidate] += run.tokens
        for picture, tokens in zip(expected, last.finished.pictures, strict=True):
            assert list(tokens.tokens) == drawn[picture.candidate] == picture.tokens.tolist()
        # Given tokens are not sent.
        onward = GenerateRequest(encoding=encoding, seed=SEED, candidates=[0], given=given)
        first, *between, last = await answer(stub.Generate(onward))
        assert sum(len(run.tokens) for message in between for run in message.rows.runs) == 13
        assert between[0].rows.runs[0].start == 3
        assert list(last.finished.pictures[0].tokens) == expected[0].tokens.tolist()
        # A random seed is reported, and gives the same tokens again.
        request.ClearField("seed")
        first, *_, last = await answer(stub.Generate(request))
        request.seed = first.started.seed
        assert (await answer(stub.Generate(request)))[-1] == last


@asynchronous
async def test_bad_requests_name_their_fields(register: Register, encoding: Encoding) -> None:
    good: dict[str, Any] = {"encoding": encoding, "candidates": [0]}
    long = Encoding()
    long.CopyFrom(encoding)
    length, width = encoding.states.shape
    long.states.shape[0] = long.mask.shape[0] = length + 1
    long.states.data += bytes(4 * width)
    long.mask.data += bytes(4)
    async with called(register) as channel:
        stub = GeneratorServiceStub(channel)
        for changes, problem in (
            ({"encoding": None}, r"encoding.model.revision: is missing"),
            ({"encoding": long}, rf"encoding.states.shape: is {length + 1} long"),
            ({"candidates": []}, r"candidates: has 0 indices; must have 1 to 64"),
            ({"candidates": range(65)}, r"candidates: has 65 indices"),
            ({"candidates": [1, -1]}, r"candidates\[1\]: -1 is not between"),
            ({"candidates": [2**20]}, r"candidates\[0\]: 1048576 is not between"),
            ({"candidates": [1, 2, 1]}, r"candidates\[2\]: 1 occurs twice"),
            ({"seed": -1}, "seed: must be from 0"),
            ({"sampling": SamplingParameters(top_p=0)}, r"sampling.top_p: "),
            (
                {"given": ImageTokens(tokens=[0] * 16)},
                "given.tokens: has 16 tokens; must be fewer",
            ),
            ({"given": ImageTokens(tokens=[64])}, r"given.tokens\[0\]: 64 is not between 0 and 63"),
            ({"priority": 7}, "priority: unknown priority 7"),
        ):
            with pytest.raises(InvalidInputError, match=problem):
                await answer(stub.Generate(GenerateRequest(**{**good, **changes})))
        other = Encoding()
        other.CopyFrom(encoding)
        other.model.revision = "sha256:other"
        with pytest.raises(ModelMismatchError):
            await answer(stub.Generate(GenerateRequest(encoding=other, candidates=[0])))


@asynchronous
async def test_unpadded_encoding_gives_the_same_tokens(
    register: Register, encoding: Encoding, pipeline: Pipeline
) -> None:
    real = int(np.frombuffer(encoding.mask.data, np.int32).sum())
    short = Encoding()
    short.CopyFrom(encoding)
    short.states.shape[0] = short.mask.shape[0] = real
    short.states.data = encoding.states.data[: 4 * real * encoding.states.shape[1]]
    short.mask.data = encoding.mask.data[: 4 * real]
    async with called(register) as channel:
        stub = GeneratorServiceStub(channel)
        whole, cut = [
            (await answer(stub.Generate(GenerateRequest(encoding=each, seed=1, candidates=[0]))))[-1]
            for each in (encoding, short)
        ]
    assert whole == cut


@asynchronous
async def test_cancelled_or_expired_call_frees_its_slots(
    register: Register, encoding: Encoding, engine: GeneratorEngine, slow: None, generated: Counter
) -> None:
    request = GenerateRequest(encoding=encoding, seed=1, candidates=range(6))
    async with called(register) as channel:
        stub = GeneratorServiceStub(channel)
        call = stub.Generate(request)
        async for message in call:
            if message.HasField("rows"):
                break
        assert engine.active == SLOTS
        call.cancel()
        while not is_idle(engine):
            await asyncio.sleep(0.01)
        with pytest.raises(RequestExpiredError):
            await answer(stub.Generate(request, timeout=0.25))
        while not is_idle(engine):
            await asyncio.sleep(0.01)
    assert generated.tokens < 6 * 16


@asynchronous
async def test_call_above_the_limit_gets_a_retry_delay(
    register: Register, encoding: Encoding, engine: GeneratorEngine, slow: None
) -> None:
    request = GenerateRequest(encoding=encoding, seed=1, candidates=range(10))
    async with called(register) as channel:
        stub = GeneratorServiceStub(channel)
        call = stub.Generate(request)
        while engine.waiting != 6:
            await asyncio.sleep(0.01)
        with pytest.raises(OverloadedError) as caught:
            await answer(stub.Generate(request))
        assert caught.value.retry_after >= 1
        call.cancel()


class Work:
    """Handles a message in a thread."""

    def __init__(
        self, engine: GeneratorEngine, tiny: ModelFolder, pipeline: Pipeline, **changes: Any
    ) -> None:
        self.store = MemoryStore()
        process = bare_process(self.store)
        handle = GenerateHandler(
            process=process,
            spec=ModelSpec.load(tiny),
            cancellations=Cancellations(process.store, 0.02),
            engine=engine,
        )
        encoding = self.store.put(JobKeys("j1").encoding, encoding_bytes(pipeline.encoder.encode(PROMPT)))
        [self.task] = task(tiny, "j1", **changes).next(encoding, PROMPT)
        self.draining = threading.Event()
        self.handler = handle
        self.pool = ThreadPoolExecutor(1)
        self.messages = self.pool.submit(lambda: list(handle(Delivery(self.task, self.draining))))

    def close(self) -> None:
        self.pool.shutdown()
        self.handler.close()


def task(tiny: ModelFolder, job: str, **changes: Any) -> EncodeTask:
    fields: dict[str, Any] = {
        "job": job,
        "expires": time.time() + 600,
        "model": tiny.name,
        "revision": tiny.revision,
        "prompt": PROMPT,
        "seed": SEED,
        "sampling": tiny.sampling,
        "candidates_in_job": 4,
        "chunks": (Chunk(chunk=0, candidates=(0, 1, 2, 3)),),
    }
    return EncodeTask(**{**fields, **changes})


def test_cancelled_job_frees_its_slots_and_stops(
    engine: GeneratorEngine, tiny: ModelFolder, pipeline: Pipeline, slow: None, generated: Counter
) -> None:
    work = Work(engine, tiny, pipeline, chunks=(MANY,))
    wait_until(lambda: engine.active == SLOTS)
    work.store.put(JobKeys("j1").cancelled, b'{"reason": "cancelled"}')
    with pytest.raises(PermanentError) as caught:
        work.messages.result(60)
    assert caught.value.reason == "cancelled"
    wait_until(lambda: is_idle(engine))
    assert not find(work.store, work.task.keys.tokens(0))
    assert generated.tokens < 40 * 16
    work.close()


def test_expired_job_is_dropped(
    engine: GeneratorEngine, tiny: ModelFolder, pipeline: Pipeline, slow: None
) -> None:
    work = Work(engine, tiny, pipeline, expires=time.time() + 0.15)
    with pytest.raises(PermanentError) as caught:
        work.messages.result(60)
    assert caught.value.reason == "expired"
    wait_until(lambda: is_idle(engine))
    work.close()


def test_draining_worker_gives_back_long_work(
    engine: GeneratorEngine, tiny: ModelFolder, pipeline: Pipeline, slow: None, generated: Counter
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
    flood = engine.submit(GenerationRequest(encoding=pipeline.encoder.encode("flood"), candidates=candidates))
    wait_until(lambda: engine.waiting == 6)
    work = Work(engine, tiny, pipeline)
    _, done = work.messages.result(60)
    assert isinstance(done, StageDone)
    assert done.attempt == 1
    assert flood.done
    work.close()


@pytest.mark.parametrize(("given", "problem"), [((0,) * 16, "the limit is 15"), ((64,), "must be below 64")])
def test_invalid_given_tokens_are_refused(
    engine: GeneratorEngine, tiny: ModelFolder, pipeline: Pipeline, given: tuple[int, ...], problem: str
) -> None:
    work = Work(engine, tiny, pipeline, given=given)
    with pytest.raises(InvalidInputError, match=problem):
        work.messages.result(60)
    work.close()


@pytest.fixture
def publisher(valkey: ValkeyServer) -> Iterator[BrokerPublisher]:
    clear(settings_for(valkey))
    made = BrokerPublisher(settings_for(valkey))
    yield made
    made.close()


def test_generator_loses_nothing_when_it_crashes_or_drains(
    valkey: ValkeyServer, s3: S3Server, tiny: ModelFolder, publisher: BrokerPublisher, pipeline: Pipeline
) -> None:
    store = open_store(StoreSettings(url=s3.url))  # type: ignore[arg-type]
    keys = JobKeys("dies")
    encoding = store.put(keys.encoding, encoding_bytes(pipeline.encoder.encode(PROMPT)))
    [asked] = task(tiny, "dies").next(encoding, PROMPT)
    generator = ServiceProcess("generator", broker=valkey.url, store=s3.url, model=tiny.path)
    generator.environment = {"SMALTI_FAILPOINTS": "generate.engine-step=raise"}
    with generator, blocking_channel(generator.url, ONCE) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        healths = stub.Watch(health_pb2.HealthCheckRequest())
        assert next(healths).status == SERVING
        publisher.publish(asked)
        assert next(healths).status == NOT_SERVING
        assert generator.wait() == 1
        assert "its engine has stopped" in generator.log.read_text()
        # Now it is slow, and stopped in the middle of the work. Giving work back does not count as an attempt.
        generator.environment = {
            "SMALTI_FAILPOINTS": "generate.engine-step=sleep:2",
            "SMALTI_BROKER_DRAIN": "1",
        }
        generator.start()
        found = gather(
            lambda: events(publisher.settings),
            lambda found: any(isinstance(each, Progress) for each in found),
        )
        progress = next(event for event in found if isinstance(event, Progress))
        assert (progress.rows, progress.of) == (1, 4)
        assert generator.end() == 0
        generator.environment = {}
        generator.start()
        found = gather(
            lambda: events(publisher.settings),
            lambda found: any(isinstance(each, StageDone) for each in found),
        )
    [done] = [event for event in found if isinstance(event, StageDone)]
    assert (done.stage, done.attempt) == (Stage.GENERATE, 2)
    expected = pipeline.generate_candidates(PROMPT, range(4), seed=SEED, sampling=tiny.sampling, total=4)
    tokens = load_tokens(store, done.objects[0], 4, ModelSpec.load(tiny))
    np.testing.assert_array_equal(tokens, [picture.tokens for picture in expected])
    assert progress.tokens == tuple(tuple(picture.tokens[:4].tolist()) for picture in expected)
