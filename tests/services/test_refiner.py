"""The refiner's stage and calls, in this process: the same bytes as the pipeline's."""

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from harness.grpc_server import asynchronous
from harness.objects import delete_named, get_named, put_named
from harness.service import answer, bare_process, called
from smalti.engines.encoding import Encoding
from smalti.errors import InvalidInputError, ModelMismatchError, NotSupportedError
from smalti.messages import FailureReason, Message, PictureToRefine, RefineTask, StageDone, parse
from smalti.parameters import Refinement, SecondPass
from smalti.pictures import plain_png_bytes, png_bytes, read_drawing
from smalti.pipeline import LocalPicture, Pipeline
from smalti.queue import Delivery, HoldBackError, PermanentError
from smalti.registry.folder import ModelFolder
from smalti.registry.spec import ModelSpec
from smalti.rpc.conversion import encoding_message, refinement_message, tokens_message
from smalti.rpc.server import Register
from smalti.service.cancellation import Cancellations
from smalti.service.compute import ComputeThread
from smalti.service.model import model_reference
from smalti.service.objects import encoding_bytes, tokens_bytes
from smalti.services.refiner.handler import RefineHandler
from smalti.services.refiner.servicer import RefinerServicer
from smalti.storage import JobKeys, MemoryStore
from smalti.text.rewording import Rewording
from smalti.v1 import refiner_pb2
from smalti.v1.refiner_pb2 import RefineRequest
from smalti.v1.refiner_pb2_grpc import RefinerServiceStub, add_RefinerServiceServicer_to_server

PROMPT, SEED, JOB = "a red fox", 7, "job"
PASS = SecondPass(upscale=2, refine=Refinement(strength=0.75, steps=2))


@pytest.fixture(scope="module")
def pipeline(refining: ModelFolder) -> Iterator[Pipeline]:
    loaded = Pipeline.load(refining.path)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def plain(pipeline: Pipeline) -> list[LocalPicture]:
    """Three candidates as they come from the pipeline."""
    sampling = pipeline.folder.sampling
    return pipeline.generate_candidates(PROMPT, range(4, 7), seed=SEED, sampling=sampling, total=7)


@pytest.fixture(scope="module")
def encoding(pipeline: Pipeline) -> Encoding:
    return pipeline.encoder.encode(PROMPT)


@pytest.fixture
def compute() -> Iterator[ComputeThread]:
    thread = ComputeThread(max_permits=2, stall_seconds=60, check=lambda: None)
    yield thread
    thread.close()


class Stage:
    """The handler around a store that holds what the earlier stages have written."""

    def __init__(
        self, pipeline: Pipeline, compute: ComputeThread, plain: list[LocalPicture], encoding: Encoding
    ) -> None:
        self.store = MemoryStore()
        keys = JobKeys(JOB)
        tokens = put_named(
            self.store, keys.tokens(1), tokens_bytes(np.stack([each.tokens for each in plain]))
        )
        prompt = put_named(self.store, keys.encoding, encoding_bytes(encoding))
        self.pictures = tuple(
            PictureToRefine(
                candidate=each.candidate,
                # As the decoder writes it: without the score.
                picture=put_named(
                    self.store,
                    keys.candidate(each.candidate),
                    png_bytes(each.image, each.drawing.model_copy(update={"score": None})),
                ),
                tokens=tokens,
                row=row,
                encoding=prompt,
            )
            for row, each in enumerate(plain)
        )
        self.folder = pipeline.folder
        self.handler = RefineHandler(
            process=bare_process(self.store),
            spec=ModelSpec.load(pipeline.folder),
            cancellations=Cancellations(self.store, 1.0),
            engine=pipeline.refiner,
            compute=compute,
        )

    def task(self, **changes: Any) -> RefineTask:
        fields: dict[str, Any] = {
            "job": JOB,
            "expires": 4e9,
            "model": self.folder.name,
            "revision": self.folder.revision,
            "prompt": PROMPT,
            "seed": SEED,
            "sampling": self.folder.sampling,
            "candidates_in_job": 7,
            "chunk": 2,
            "second_pass": PASS,
            "refiner": self.folder.refiner_revision,
            "pictures": self.pictures,
        }
        return RefineTask(**{**fields, **changes})

    def run(self, task: RefineTask) -> list[Message]:
        return list(self.handler(Delivery(parse(task.to_json()), threading.Event())))


@pytest.fixture
def stage(
    pipeline: Pipeline, compute: ComputeThread, plain: list[LocalPicture], encoding: Encoding
) -> Iterator[Stage]:
    made = Stage(pipeline, compute, plain, encoding)
    yield made
    made.handler.close()


def test_stage_writes_the_pictures_of_the_pipeline(
    stage: Stage, pipeline: Pipeline, plain: list[LocalPicture]
) -> None:
    (done,) = stage.run(stage.task())
    assert isinstance(done, StageDone)
    keys = JobKeys(JOB)
    assert [ref.name for ref in done.objects] == [keys.refined(index) for index in (4, 5, 6)]
    for expected in pipeline.refine(plain, PASS):
        content = get_named(stage.store, keys.refined(expected.candidate))
        image, drawing = read_drawing(content)
        np.testing.assert_array_equal(np.asarray(image), np.asarray(expected.image))
        assert drawing == expected.drawing.model_copy(update={"score": None})
    # One chunk of one picture gives the same bytes, and finished work is skipped.
    before = get_named(stage.store, keys.refined(5))
    delete_named(stage.store, keys.refined(5))
    (again,) = stage.run(stage.task(chunk=3, pictures=stage.pictures[1:2]))
    assert isinstance(again, StageDone)
    assert not again.skipped
    assert get_named(stage.store, keys.refined(5)) == before
    (skipped,) = stage.run(stage.task())
    assert isinstance(skipped, StageDone)
    assert skipped.skipped


def test_enlarging_needs_only_the_pictures(
    stage: Stage, pipeline: Pipeline, plain: list[LocalPicture]
) -> None:
    pictures = tuple(
        PictureToRefine(candidate=each.candidate, picture=each.picture) for each in stage.pictures
    )
    delete_named(stage.store, JobKeys(JOB).encoding)
    stage.run(stage.task(second_pass=SecondPass(upscale=4), refiner=None, pictures=pictures))
    expected = pipeline.refine(plain, SecondPass(upscale=4))[0]
    image, drawing = read_drawing(get_named(stage.store, JobKeys(JOB).refined(4)))
    np.testing.assert_array_equal(np.asarray(image), np.asarray(expected.image))
    assert drawing.second_pass == SecondPass(upscale=4)


@pytest.mark.parametrize("harm", ["missing", "damaged", "no picture"])
def test_lost_inputs_are_deleted_and_reported(stage: Stage, harm: str) -> None:
    source = stage.pictures[1]
    key = source.picture.key
    if harm == "missing":
        stage.store.delete(key)
    elif harm == "damaged":
        stage.store.put(key, b"something else")
    else:
        plain = plain_png_bytes(read_drawing(stage.store.get(key))[0])
        ref = put_named(stage.store, source.picture.name, plain)
        key = ref.key
        source = source.model_copy(update={"picture": ref})
    with pytest.raises(PermanentError) as lost:
        stage.run(stage.task(pictures=(source,)))
    assert lost.value.reason is FailureReason.INPUTS
    assert key in str(lost.value)
    assert stage.store.stat(key) is None


def test_task_for_another_refiner_is_held_back(stage: Stage) -> None:
    with pytest.raises(HoldBackError, match="needs the refiner"):
        stage.run(stage.task(refiner=f"sha256:{'0' * 64}"))


# Calls


def register(pipeline: Pipeline, compute: ComputeThread, folder: ModelFolder) -> Register:
    model = model_reference(folder.name, folder.revision)
    servicer = RefinerServicer(
        engine=pipeline.refiner, compute=compute, spec=ModelSpec.load(folder), model=model
    )
    return lambda server: add_RefinerServiceServicer_to_server(servicer, server)


def request(plain: list[LocalPicture], encoding: Encoding, folder: ModelFolder) -> RefineRequest:
    assert PASS.refine is not None
    return RefineRequest(
        pictures=[
            refiner_pb2.PictureToRefine(
                image=plain_png_bytes(each.image),
                tokens=tokens_message(each.tokens),
                candidate=each.candidate,
            )
            for each in plain
        ],
        refine=refinement_message(PASS.refine),
        seed=SEED,
        encoding=encoding_message(encoding, model_reference(folder.name, folder.revision), Rewording(PROMPT)),
    )


@asynchronous
async def test_call_gives_the_pictures_of_the_pipeline(
    pipeline: Pipeline, compute: ComputeThread, plain: list[LocalPicture], encoding: Encoding
) -> None:
    asked = request(plain, encoding, pipeline.folder)
    async with called(register(pipeline, compute, pipeline.folder)) as channel:
        responses = await answer(RefinerServiceStub(channel).Refine(asked))
    expected = pipeline.refine(plain, PASS)
    assert [each.index for each in responses] == [0, 1, 2]
    assert [each.image.data for each in responses] == [plain_png_bytes(each.image) for each in expected]
    assert (responses[0].image.width, responses[0].image.height) == (64, 64)


@asynchronous
async def test_bad_calls_name_their_fields(
    pipeline: Pipeline,
    compute: ComputeThread,
    plain: list[LocalPicture],
    encoding: Encoding,
    tiny: ModelFolder,
) -> None:
    def changed(**changes: Any) -> RefineRequest:
        asked = request(plain, encoding, pipeline.folder)
        for name in changes:
            asked.ClearField(name)  # type: ignore[arg-type]
        asked.MergeFrom(RefineRequest(**changes))
        return asked

    async with called(register(pipeline, compute, pipeline.folder)) as channel:
        stub = RefinerServiceStub(channel)
        for asked, problem in (
            (changed(pictures=[]), "pictures: has 0 pictures"),
            (changed(upscale=3), "upscale: must be 1, 2 or 4, not 3"),
            (changed(refine=refiner_pb2.Refinement(steps=65)), "refine.steps"),
            (changed(refine=refiner_pb2.Refinement(strength=-0.5)), "refine.strength"),
            (changed(encoding=None), "encoding: is missing"),
            (changed(pictures=[refiner_pb2.PictureToRefine(image=b"x")]), r"pictures\[0\].tokens"),
        ):
            with pytest.raises(InvalidInputError, match=problem):
                await answer(stub.Refine(asked))
        with pytest.raises(ModelMismatchError):
            await answer(stub.Refine(changed(refine=refiner_pb2.Refinement(revision="sha256:0"))))
    async with called(register(pipeline, compute, tiny)) as channel:
        with pytest.raises(NotSupportedError):
            await answer(RefinerServiceStub(channel).Refine(request(plain, encoding, tiny)))
