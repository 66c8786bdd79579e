"""The encoder's calls and messages, in this process."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from harness.grpc_server import asynchronous
from harness.queue import task
from harness.service import answer, bare_process, called
from smalti.engines.encoder import EncoderEngine, unconditional_encoding
from smalti.errors import InvalidInputError, ModelNotFoundError
from smalti.messages import EncodeTask, GenerateTask, StageDone
from smalti.pipeline import Pipeline
from smalti.queue import Delivery
from smalti.registry.folder import ModelFolder
from smalti.registry.spec import ModelSpec
from smalti.rpc.conversion import encoding_of
from smalti.rpc.server import Register
from smalti.service.cancellation import Cancellations
from smalti.service.compute import ComputeThread
from smalti.service.model import model_reference
from smalti.service.objects import load_encoding
from smalti.services.encoder.handler import EncodeHandler
from smalti.services.encoder.servicer import EncoderServicer
from smalti.text.rewording import Rewriter
from smalti.v1.encoder_pb2 import EncodeRequest
from smalti.v1.encoder_pb2_grpc import EncoderServiceStub, add_EncoderServiceServicer_to_server
from smalti.v1.model_pb2 import ModelReference


@pytest.fixture(scope="module")
def compute() -> Iterator[ComputeThread]:
    thread = ComputeThread(max_permits=4, stall_seconds=60, check=lambda: None)
    yield thread
    thread.close()


@pytest.fixture
def servicer(worded: ModelFolder, pipeline: Pipeline, compute: ComputeThread) -> EncoderServicer:
    """Serves the tiny model's encoder with a closed vocabulary."""
    model = model_reference(worded.name, worded.revision)
    return EncoderServicer(
        engine=pipeline.encoder, compute=compute, rewriter=Rewriter.load(worded.words_file), model=model
    )


def register(servicer: EncoderServicer) -> Register:
    return lambda server: add_EncoderServiceServicer_to_server(servicer, server)


@asynchronous
async def test_effective_prompt_is_encoded(
    servicer: EncoderServicer, worded: ModelFolder, pipeline: Pipeline
) -> None:
    async with called(register(servicer)) as channel:
        stub = EncoderServiceStub(channel)
        asked = EncodeRequest(prompt=" a red zeppelin ")
        encoding = (await answer(stub.Encode(asked))).encoding
        again = (await answer(stub.Encode(asked))).encoding
    assert encoding == again
    rewording = Rewriter.load(worded.words_file)("a red zeppelin")
    assert encoding.reading.drawn == rewording.prompt
    assert list(encoding.reading.unknown_words) == list(rewording.unknown)
    assert encoding.reading.unknown_words
    width = ModelSpec.load(worded).transformer.d_model
    read = encoding_of(encoding, model_reference(worded.name, worded.revision), width)
    np.testing.assert_array_equal(read.states, pipeline.encoder.encode(rewording.prompt).states)


@asynchronous
async def test_unconditional_encoding_matches_the_generator(
    servicer: EncoderServicer, tiny: ModelFolder, pipeline: Pipeline
) -> None:
    request = EncodeRequest()
    request.unconditional.SetInParent()
    async with called(register(servicer)) as channel:
        encoding = (await answer(EncoderServiceStub(channel).Encode(request))).encoding
    states = np.frombuffer(encoding.states.data, np.float32).reshape(tuple(encoding.states.shape))
    np.testing.assert_array_equal(states, pipeline.encoder.unconditional.states)
    alone = unconditional_encoding(ModelSpec.load(tiny))
    np.testing.assert_array_equal(alone.states, pipeline.encoder.unconditional.states)
    np.testing.assert_array_equal(alone.mask, pipeline.encoder.unconditional.mask)


@asynchronous
async def test_bad_requests_name_their_fields(servicer: EncoderServicer) -> None:
    async with called(register(servicer)) as channel:
        stub = EncoderServiceStub(channel)
        for request, problem in (
            (EncodeRequest(), "prompt: is missing"),
            (EncodeRequest(prompt=""), "prompt: is empty"),
            (EncodeRequest(prompt=" \n "), "prompt: is empty"),
            (EncodeRequest(prompt="x" * 4001), "prompt: has 4001 characters; the limit is 4000"),
        ):
            with pytest.raises(InvalidInputError, match=problem):
                await answer(stub.Encode(request))
        with pytest.raises(ModelNotFoundError, match="mega is not loaded here"):
            await answer(stub.Encode(EncodeRequest(prompt="a cat", model=ModelReference(name="mega"))))


def test_reading_is_reported_even_when_the_encoding_exists(
    worded: ModelFolder, compute: ComputeThread
) -> None:
    process, spec = bare_process(), ModelSpec.load(worded)
    engine = EncoderEngine.load(spec)
    handle = EncodeHandler(
        process=process,
        folder=worded,
        cancellations=Cancellations(process.store, 0.05),
        engine=engine,
        compute=compute,
        rewriter=Rewriter.load(worded.words_file),
    )
    asked = task(prompt="a red zeppelin", model=worded)
    assert isinstance(asked, EncodeTask)
    first, second = (list(handle(Delivery(asked, threading.Event()))) for _ in range(2))
    for messages, skipped in ((first, False), (second, True)):
        generate, done = messages
        assert isinstance(generate, GenerateTask)
        assert isinstance(done, StageDone)
        assert done.skipped is skipped
        assert done.reading is not None
        assert done.reading.unknown == ("zeppelin",)
        assert done.reading.effective_prompt == Rewriter.load(worded.words_file)("a red zeppelin").prompt
        encoding = load_encoding(process.store, generate.encoding_refs[0], spec)
        np.testing.assert_array_equal(encoding.states, engine.encode(done.reading.effective_prompt).states)
    handle.close()
