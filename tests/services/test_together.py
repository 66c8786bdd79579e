"""The four stages as processes: through the queue and over gRPC they give the same pictures as the pipeline."""

import io
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness.objects import delete_named, get_named, put_named, ref_of
from harness.queue import clear, events, gather, read_all, settings_for, task
from harness.servers import S3Server, ValkeyServer
from harness.service_process import ONCE, SERVING, ServiceProcess
from harness.shards import LocalShard, batch_prompt, encode_shard_task
from smalti.batches import PromptResult
from smalti.messages import (
    MAX_CLOCK_SKEW_SECONDS,
    Chunk,
    DecodeTask,
    EncodeTask,
    Failed,
    GenerateTask,
    Message,
    ShardProgress,
    Stage,
    StageDone,
)
from smalti.pictures import load_drawing
from smalti.pipeline import LocalPicture, Pipeline
from smalti.queue import BrokerPublisher
from smalti.registry.folder import ModelFolder
from smalti.results import ScoresFile
from smalti.rpc.channel import blocking_channel
from smalti.storage import JobKeys, ObjectRef, ObjectStore, content_key, digest
from smalti.v1.decoder_pb2 import DecodeRequest, EncodeImagesRequest
from smalti.v1.decoder_pb2_grpc import DecoderServiceStub
from smalti.v1.encoder_pb2 import EncodeRequest
from smalti.v1.encoder_pb2_grpc import EncoderServiceStub
from smalti.v1.engine_pb2 import GetEngineRequest
from smalti.v1.engine_pb2_grpc import EngineServiceStub
from smalti.v1.generator_pb2 import GenerateRequest
from smalti.v1.generator_pb2_grpc import GeneratorServiceStub
from smalti.v1.ranker_pb2 import ScoreRequest
from smalti.v1.ranker_pb2_grpc import RankerServiceStub

SERVICES = ("encoder", "generator", "decoder", "ranker")
PROMPT = "a red fox"
SEED = 7
STAGES = (Stage.ENCODE, Stage.GENERATE, Stage.DECODE, Stage.RANK)
CHUNKS = (Chunk(chunk=0, candidates=(0, 1, 2, 3)), Chunk(chunk=1, candidates=(4, 5)))


def process(service: str, valkey: ValkeyServer, s3: S3Server, tiny: ModelFolder) -> ServiceProcess:
    return ServiceProcess(service, broker=valkey.url, store=s3.url, model=tiny.path)


@pytest.fixture(scope="module")
def services(valkey: ValkeyServer, s3: S3Server, tiny: ModelFolder) -> Iterator[dict[str, ServiceProcess]]:
    """The four services."""
    clear(settings_for(valkey))
    with ExitStack() as stack:
        made = {name: process(name, valkey, s3, tiny) for name in SERVICES}
        for each in made.values():
            stack.callback(each.close)
            each.launch()  # All in parallel, because imports take most of the time.
        for each in made.values():
            each.wait_until_ready()
        yield made
        for each in made.values():
            each.tell()  # All in parallel as well.


@pytest.fixture(scope="module")
def expected(pipeline: Pipeline) -> list[LocalPicture]:
    """The pictures that the pipeline generates."""
    return pipeline.generate_candidates(
        PROMPT, range(6), seed=SEED, sampling=pipeline.folder.sampling, total=6
    )


def encode_task(tiny: ModelFolder, job: str, **changes: Any) -> EncodeTask:
    """Returns a job of two chunks, or of those that are given."""
    fields: dict[str, Any] = {"seed": SEED, "chunks": CHUNKS, **changes}
    return task(job, PROMPT, model=tiny, **fields)


def read_events(
    publisher: BrokerPublisher, job: str, stages: Iterable[Stage] = STAGES, chunks: int = 1
) -> list[Message]:
    """Reads the events of a job until each of the stages has reported each chunk; fails on a `Failed` event.

    A stage reports to the gateway after it has sent its work on, so that the report of the next stage
    may come first.
    """
    wanted = {stage: 1 if stage is Stage.ENCODE else chunks for stage in stages}

    def ended(found: list[Message]) -> bool:
        reported = {(event.stage, event.chunk) for event in found if isinstance(event, StageDone)}
        counts = Counter(stage for stage, _ in reported)
        return counts >= Counter(wanted) or any(isinstance(event, Failed) for event in found)

    found = gather(
        lambda: [event for event in events(publisher.settings) if getattr(event, "job", None) == job], ended
    )
    assert not [event for event in found if isinstance(event, Failed)]
    return found


def _is(event: Message, stage: Stage) -> bool:
    return isinstance(event, StageDone) and event.stage is stage


def objects(store: ObjectStore, job: str) -> dict[str, bytes]:
    """Returns the objects of a job by key, without the records of the stages."""
    found = [info.key for info in store.objects(f"jobs/{job}/")]
    return {key: store.get(key) for key in found if "/outputs/" not in key}


def test_queue_gives_the_pictures_of_the_pipeline(
    services: dict[str, ServiceProcess],
    publisher: BrokerPublisher,
    store: ObjectStore,
    tiny: ModelFolder,
    expected: list[LocalPicture],
    tmp_path: Path,
) -> None:
    publisher.publish(encode_task(tiny, "whole"))
    found = read_events(publisher, "whole", chunks=2)
    keys = JobKeys("whole")
    scores = [
        picture
        for chunk in CHUNKS
        for picture in ScoresFile.parse("", get_named(store, keys.scores(chunk.chunk))).pictures
    ]
    assert [picture.index for picture in scores] == list(range(6))
    for picture, scored in zip(expected, scores, strict=True):
        content = get_named(store, keys.candidate(picture.candidate))
        with Image.open(io.BytesIO(content)) as image:
            np.testing.assert_array_equal(np.asarray(image), np.asarray(picture.image))
        assert scored.score == pytest.approx(picture.score, abs=1e-3)
        assert (scored.sha256, scored.size) == (digest(content), len(content))
        assert (scored.width, scored.height) == picture.image.size
        file = tmp_path / "picture.png"
        file.write_bytes(content)
        assert load_drawing(file) == picture.drawing.model_copy(update={"score": None})
    # Each stage reported each chunk and its objects to the gateway.
    done = [event for event in found if isinstance(event, StageDone)]
    assert sorted((event.stage.value, event.chunk) for event in done if event.chunk is not None) == [
        (stage, chunk) for stage in ("decode", "generate", "rank") for chunk in (0, 1)
    ]
    encoded = next(event for event in done if event.stage is Stage.ENCODE)
    assert encoded.reading is not None
    assert encoded.reading.effective_prompt == PROMPT
    assert {ref.key for event in done for ref in event.objects} == set(objects(store, "whole"))


def test_shard_through_the_queue_is_that_of_one_process(
    services: dict[str, ServiceProcess],
    publisher: BrokerPublisher,
    store: ObjectStore,
    tiny: ModelFolder,
    pipeline: Pipeline,
    tmp_path: Path,
) -> None:
    prompts = [batch_prompt(row, PROMPT, candidates=5) for row in range(3)]
    asked = encode_shard_task(store, prompts, tiny, "whole-batch")
    publisher.publish(asked)
    found = read_events(publisher, asked.job)
    assert sorted(event.stage for event in found if isinstance(event, StageDone)) == sorted(STAGES)
    assert {event.stage for event in found if isinstance(event, ShardProgress)} == set(STAGES)
    report = next(event.shard for event in found if isinstance(event, StageDone) and event.shard)
    local = LocalShard(pipeline, prompts).draw(tmp_path / "00000.tar")
    assert report.tar is not None
    assert store.get(report.tar.key, sha256=report.tar.sha256) == (tmp_path / "00000.tar").read_bytes()
    assert store.get(report.part.key) == PromptResult.to_bytes(local.results)


def test_repeated_work_is_skipped_or_gives_the_same_bytes(
    services: dict[str, ServiceProcess], publisher: BrokerPublisher, store: ObjectStore, tiny: ModelFolder
) -> None:
    asked = encode_task(tiny, "again")
    publisher.publish(asked)
    read_events(publisher, "again", chunks=2)
    first = objects(store, "again")
    publisher.publish(asked)
    found = read_events(publisher, "again", chunks=2)
    assert all(event.skipped for event in found if isinstance(event, StageDone))
    store.delete(*first)
    publisher.publish(asked)
    found = read_events(publisher, "again", chunks=2)
    assert not any(event.skipped for event in found if isinstance(event, StageDone))
    assert objects(store, "again") == first


@pytest.mark.parametrize("damage", ["missing", "other content", "no picture"])
def test_missing_or_damaged_object_is_recreated(
    services: dict[str, ServiceProcess],
    publisher: BrokerPublisher,
    store: ObjectStore,
    tiny: ModelFolder,
    damage: str,
) -> None:
    job = damage.replace(" ", "-")
    publisher.publish(encode_task(tiny, job, chunks=CHUNKS[:1]))
    found = read_events(publisher, job)
    whole, keys = objects(store, job), JobKeys(job)
    decoded = next(event for event in found if _is(event, Stage.DECODE))
    assert isinstance(decoded, StageDone)
    tokens = ref_of(store, keys.tokens(0))
    carried = encode_task(tiny, job, chunks=CHUNKS[:1]).model_dump(exclude={"kind", "chunks", "version"})
    again = DecodeTask(**carried, chunk=0, candidates=CHUNKS[0].candidates, tokens=tokens)
    if damage == "missing":
        store.delete(*whole)
        publisher.publish(again)
    elif damage == "other content":
        store.delete(*whole)
        store.put(tokens.key, b"these are no tokens")
        publisher.publish(again)
    else:
        delete_named(store, keys.scores(0))
        pictures = [*decoded.objects[:3], put_named(store, decoded.objects[3].name, b"this is no picture")]
        publisher.publish(again.next(tuple(pictures)))
    found = read_events(publisher, job, [Stage.RANK])
    assert objects(store, job) == whole
    # The work was restarted once, which counts as an attempt.
    assert {event.attempt for event in found if _is(event, Stage.RANK)} == {2}


def test_finished_work_is_passed_on_without_its_inputs(
    services: dict[str, ServiceProcess], publisher: BrokerPublisher, store: ObjectStore, tiny: ModelFolder
) -> None:
    publisher.publish(encode_task(tiny, "done", chunks=CHUNKS[:1]))
    read_events(publisher, "done")
    keys = JobKeys("done")
    whole = objects(store, "done")
    tokens = ref_of(store, keys.tokens(0))
    carried = encode_task(tiny, "done", chunks=CHUNKS[:1]).model_dump(exclude={"kind", "chunks", "version"})
    encoding = ref_of(store, keys.encoding)
    store.delete(encoding.key, tokens.key)
    publisher.publish(DecodeTask(**carried, chunk=0, candidates=CHUNKS[0].candidates, tokens=tokens))
    found = read_events(publisher, "done", [Stage.DECODE, Stage.RANK])
    assert {(event.stage, event.skipped) for event in found if isinstance(event, StageDone)} == {
        (Stage.DECODE, True),
        (Stage.RANK, True),
    }
    assert {
        **objects(store, "done"),
        encoding.key: whole[encoding.key],
        tokens.key: whole[tokens.key],
    } == whole


def test_task_whose_input_is_always_lost_fails_after_the_last_attempt(
    services: dict[str, ServiceProcess], publisher: BrokerPublisher, tiny: ModelFolder
) -> None:
    carried = encode_task(tiny, "lost").model_dump(exclude={"kind", "chunks", "version", "attempt"})
    lost = ObjectRef(key=content_key(JobKeys("lost").encoding, "0" * 64), sha256="0" * 64)
    publisher.publish(
        GenerateTask(**carried, chunk=0, candidates=(0,), encoding=lost, attempt=publisher.settings.attempts)
    )
    # The message is kept after the gateway has been told.
    assert len(gather(lambda: read_all(publisher.settings, "smalti.generate.dead"), bool)) == 1
    [failed] = events(publisher.settings)
    assert isinstance(failed, Failed)
    assert failed.reason == "exhausted"


def test_task_for_another_model_expires_and_one_of_a_cancelled_job_is_refused(
    services: dict[str, ServiceProcess], publisher: BrokerPublisher, store: ObjectStore, tiny: ModelFolder
) -> None:
    soon = time.time() - MAX_CLOCK_SKEW_SECONDS + 1
    publisher.publish(encode_task(tiny, "other", revision="sha256:" + "0" * 64, expires=soon))
    store.put(JobKeys("cancelled").cancelled, b'{"reason": "cancelled"}')
    publisher.publish(encode_task(tiny, "cancelled"))
    found = gather(lambda: events(publisher.settings), lambda found: len(found) == 2)
    assert {(event.job, event.reason) for event in found if isinstance(event, Failed)} == {
        ("other", "expired"),
        ("cancelled", "cancelled"),
    }
    assert list(objects(store, "cancelled")) == [JobKeys("cancelled").cancelled]
    assert not objects(store, "other")


def test_calls_give_the_pictures_of_the_pipeline(
    services: dict[str, ServiceProcess], tiny: ModelFolder, expected: list[LocalPicture]
) -> None:
    with ExitStack() as stack:
        encoder, generator, decoder, ranker = (
            stack.enter_context(blocking_channel(services[name].url, ONCE)) for name in SERVICES
        )
        encoding = EncoderServiceStub(encoder).Encode(EncodeRequest(prompt=PROMPT)).encoding
        request = GenerateRequest(encoding=encoding, seed=SEED, candidates=[3, 1])
        *_, last = GeneratorServiceStub(generator).Generate(request)
        for drawn, index in zip(last.finished.pictures, (3, 1), strict=True):
            assert list(drawn.tokens) == expected[index].tokens.tolist()
        decoding = DecodeRequest(pictures=last.finished.pictures)
        pictures = list(DecoderServiceStub(decoder).Decode(decoding))
        assert [picture.index for picture in pictures] == [0, 1]
        for picture, index in zip(pictures, (3, 1), strict=True):
            with Image.open(io.BytesIO(picture.image.data)) as image:
                np.testing.assert_array_equal(np.asarray(image), np.asarray(expected[index].image))
        files = [picture.image.data for picture in pictures]
        scores = RankerServiceStub(ranker).Score(ScoreRequest(prompt=PROMPT, images=files)).scores
        assert list(scores) == pytest.approx([expected[3].score, expected[1].score], abs=1e-3)
        encoded = DecoderServiceStub(decoder).EncodeImages(EncodeImagesRequest(images=files))
        assert [len(each.tokens) for each in encoded.pictures] == [16, 16]


def test_each_service_is_healthy_and_describes_its_engine(
    services: dict[str, ServiceProcess], tiny: ModelFolder
) -> None:
    for stage, (name, service) in enumerate(services.items(), 1):
        assert service.health() == SERVING
        with blocking_channel(service.url, ONCE) as channel:
            engine = EngineServiceStub(channel).GetEngine(GetEngineRequest()).engine
        assert engine.stage == stage
        assert (engine.model.reference.name, engine.model.reference.revision) == (tiny.name, tiny.revision)
        assert (engine.model.rows, engine.model.columns, engine.model.image_width) == (4, 4, 32)
        assert engine.model.encodes_images
        assert engine.device == "cpu"
        assert engine.slots == (16 if name == "generator" else 1)
        assert engine.active == engine.waiting == 0
