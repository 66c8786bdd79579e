"""Calls to the generator."""

import asyncio
from typing import Any

import numpy as np
import pytest

from harness.generator import TokenCounter, is_idle
from harness.grpc_server import asynchronous
from harness.service import answer, called
from smalti.engines.generator.engine import GeneratorEngine
from smalti.errors import InvalidInputError, ModelMismatchError, OverloadedError, RequestExpiredError
from smalti.pipeline import Pipeline
from smalti.registry.folder import ModelFolder
from smalti.registry.spec import ModelSpec
from smalti.rpc.server import Register
from smalti.service.model import model_reference
from smalti.services.generator.servicer import GeneratorServicer
from smalti.v1.encoder_pb2 import Encoding
from smalti.v1.generator_pb2 import GenerateRequest
from smalti.v1.generator_pb2_grpc import GeneratorServiceStub, add_GeneratorServiceServicer_to_server
from smalti.v1.sampling_pb2 import SamplingParameters
from smalti.v1.tokens_pb2 import ImageTokens
from tests.services.generator.conftest import PROMPT, SLOTS

SEED = 7


@pytest.fixture
def register(engine: GeneratorEngine, tiny: ModelFolder) -> Register:
    servicer = GeneratorServicer(
        engine=engine, spec=ModelSpec.load(tiny), model=model_reference(tiny.name, tiny.revision)
    )
    return lambda server: add_GeneratorServiceServicer_to_server(servicer, server)


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
        # Tokens are kept wherever they are, and those between them are sent with the others.
        whole = ImageTokens(tokens=expected[0].tokens.tolist())
        edit = GenerateRequest(
            encoding=encoding, seed=SEED, candidates=[0, 5], given=whole, redrawn_tiles=[0, 7, 9]
        )
        first, *between, last = await answer(stub.Generate(edit))
        assert sum(len(run.tokens) for message in between for run in message.rows.runs) == 2 * 16
        own, other = (np.array(picture.tokens) for picture in last.finished.pictures)
        np.testing.assert_array_equal(own, expected[0].tokens)
        np.testing.assert_array_equal(np.delete(other, [0, 7, 9]), np.delete(own, [0, 7, 9]))
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
    register: Register, encoding: Encoding, engine: GeneratorEngine, slow: None, generated: TokenCounter
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
