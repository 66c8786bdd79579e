"""Conversion of exceptions to statuses and back, with and without a real server."""

import asyncio
import logging
import re
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from harness.grpc_server import asynchronous, served
from smalti.errors import (
    AttemptsExhaustedError,
    AuthenticationError,
    BatchNotFoundError,
    BrokerUnavailableError,
    CheckpointError,
    DatabaseUnavailableError,
    DrainingError,
    EngineFailedError,
    EngineFullError,
    InvalidInputError,
    JobNotFoundError,
    JobNotSucceededError,
    ModelMismatchError,
    ModelNotFoundError,
    NotSupportedError,
    OverloadedError,
    PermissionDeniedError,
    PictureNotFoundError,
    QuotaExceededError,
    RefusedByPolicyError,
    RemoteError,
    RequestCancelledError,
    RequestExpiredError,
    RequestIdReusedError,
    SmaltiError,
    StoredFileNotFoundError,
    StoreUnavailableError,
    UnavailableError,
    WrongStateError,
)
from smalti.rpc.channel import blocking_channel, channel
from smalti.rpc.errors import error_of, error_of_status, status_of, translated, within
from smalti.rpc.reasons import BY_NAME, REASONS, reason_of
from smalti.rpc.settings import RpcSettings
from smalti.v1.encoder_pb2 import EncodeRequest
from smalti.v1.encoder_pb2_grpc import EncoderServiceStub
from smalti.v1.generator_pb2 import GenerateRequest
from smalti.v1.generator_pb2_grpc import GeneratorServiceStub

ONCE = RpcSettings(attempts=1)

ERRORS: dict[str, SmaltiError] = {
    "INVALID_INPUT": InvalidInputError("top_p", "must be above 0, not 0.0"),
    "MODEL_NOT_FOUND": ModelNotFoundError("there is no model mega", "mega"),
    "JOB_NOT_FOUND": JobNotFoundError("j1"),
    "PICTURE_NOT_FOUND": PictureNotFoundError("j1/3"),
    "BATCH_NOT_FOUND": BatchNotFoundError("b1"),
    "FILE_NOT_FOUND": StoredFileNotFoundError("f1"),
    "WRONG_STATE": WrongStateError("batch b1 has ended"),
    "REQUEST_ID_REUSED": RequestIdReusedError("j1"),
    "JOB_NOT_SUCCEEDED": JobNotSucceededError("job j1 is RUNNING"),
    "MODEL_MISMATCH": ModelMismatchError("another model"),
    "NOT_SUPPORTED": NotSupportedError("no encoder"),
    "OVERLOADED": OverloadedError("2 calls are already waiting", 2.5),
    "QUOTA_EXCEEDED": QuotaExceededError(
        "no more today", 3600.5, quota="candidates_per_day", limit=9, left=2
    ),
    "DRAINING": DrainingError("about to stop"),
    "ENGINE_STOPPED": EngineFailedError("the engine has stopped; try again, another instance may answer"),
    "DEPENDENCY_UNAVAILABLE": UnavailableError("the store does not answer", 4),
    "CANCELLED": RequestCancelledError("cancelled"),
    "EXPIRED": RequestExpiredError("too late"),
    "ATTEMPTS_EXHAUSTED": AttemptsExhaustedError("5 attempts"),
    "CONTENT_POLICY": RefusedByPolicyError("the policy of this server refuses the prompt"),
    "UNAUTHENTICATED": AuthenticationError("the call has no key"),
    "NOT_PERMITTED": PermissionDeniedError("the key may not do this"),
}


def test_every_reason_with_its_own_error_is_tested() -> None:
    assert {*ERRORS, "INTERNAL", "MODEL_UNUSABLE"} == set(BY_NAME)
    assert len(REASONS) == len(BY_NAME)


@pytest.mark.parametrize("name", ERRORS)
@asynchronous
async def test_error_crosses_the_wire(name: str) -> None:
    async with served() as (server, servicer):
        servicer.error = ERRORS[name]
        async with channel(server.address, ONCE) as aio_channel:
            with pytest.raises(type(servicer.error)) as caught, translated():
                await EncoderServiceStub(aio_channel).Encode(EncodeRequest(prompt="x"))
            call = caught.value.__cause__
        assert isinstance(call, grpc.aio.AioRpcError)
        assert call.code() == BY_NAME[name].code
        assert str(caught.value) == str(servicer.error)
        assert vars(caught.value) == vars(servicer.error)


@asynchronous
async def test_stream_error_crosses_the_wire_to_a_blocking_client() -> None:
    async with served() as (server, servicer):
        servicer.error = EngineFullError(7, 3.0)

        def call() -> SmaltiError:
            with blocking_channel(server.address, ONCE) as threads_channel:
                try:
                    list(GeneratorServiceStub(threads_channel).Generate(GenerateRequest()))
                except grpc.RpcError as error:
                    return error_of(error)
            raise AssertionError("it did not fail")

        error = await asyncio.to_thread(call)
        assert isinstance(error, OverloadedError)
        assert error.retry_after == 3
        assert str(error) == str(servicer.error)


@asynchronous
async def test_grpc_status_library_reads_the_details() -> None:
    async with served() as (server, servicer):
        servicer.error = InvalidInputError("prompt", "it is empty")

        def call() -> status_pb2.Status | None:
            with blocking_channel(server.address, ONCE) as threads_channel:
                stub: Any = EncoderServiceStub(threads_channel)
                with pytest.raises(grpc.RpcError) as caught:
                    stub.Encode(EncodeRequest())
                failed: Any = caught.value
                return rpc_status.from_call(failed)

        status = await asyncio.to_thread(call)
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert status is not None
    assert len(status.details) == 2
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(bad)
    assert (info.reason, info.domain) == ("INVALID_INPUT", "smalti")
    assert [(entry.field, entry.description) for entry in bad.field_violations] == [("prompt", "it is empty")]


SECRET = "postgresql://admin:hunter2@db"


@pytest.mark.parametrize(
    "error",
    [KeyError(SECRET), CheckpointError(f"{SECRET}: damaged"), TimeoutError(SECRET), SmaltiError(SECRET)],
    ids=lambda error: type(error).__name__,
)
@asynchronous
async def test_internal_error_is_logged_and_hidden_from_the_caller(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async with served() as (server, servicer), channel(server.address, ONCE) as aio_channel:
        servicer.error = error
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await EncoderServiceStub(aio_channel).Encode(EncodeRequest(prompt="x"))
        translated_error = error_of(caught.value)
    everything = f"{caught.value} {caught.value.trailing_metadata()}"
    assert SECRET not in everything
    assert "Traceback" not in everything
    assert "File " not in everything
    assert isinstance(translated_error, RemoteError)
    assert translated_error.code == "INTERNAL"
    assert len(translated_error.error_id) == 16
    assert translated_error.error_id in str(translated_error)
    records = [record for record in caplog.records if translated_error.error_id in record.getMessage()]
    assert [record.levelno for record in records] == [logging.ERROR]
    assert "/smalti.v1.EncoderService/Encode" in records[0].getMessage()
    assert records[0].exc_info is not None
    assert records[0].exc_info[1] is error


def foreign() -> UnavailableError:
    """Returns the error of a call that reached no server, as gRPC itself words it."""
    call = grpc.aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), details=SECRET
    )
    error = error_of(call)
    error.__cause__ = call
    assert isinstance(error, UnavailableError)
    return error


@pytest.mark.parametrize(
    "error",
    [
        StoreUnavailableError(f"the object store does not answer: {SECRET}"),
        DatabaseUnavailableError(f"the database does not answer: {SECRET}", 2.0),
        BrokerUnavailableError(f"the broker is not available: {SECRET}"),
        foreign(),
    ],
    ids=["store", "database", "broker", "server"],
)
def test_callers_are_not_told_where_what_is_away_should_be(
    error: UnavailableError, caplog: pytest.LogCaptureFixture
) -> None:
    status = status_of(error, during="/smalti.v1.ImageService/GetJob")
    assert SECRET not in str(status)
    seen = error_of_status(status)
    assert isinstance(seen, UnavailableError)
    assert seen.retry_after == error.retry_after
    (record,) = caplog.records
    told = re.search(r"is not available; the service's log has the cause under (\w{16})$", str(seen))
    assert told is not None
    assert told[1] in record.getMessage()
    assert SECRET in record.getMessage()
    assert record.levelno == logging.WARNING


def test_cause_of_an_engine_failure_is_hidden_from_the_caller() -> None:
    status = status_of(EngineFailedError(f"the generator has stopped: RuntimeError({SECRET!r})"))
    assert SECRET not in str(status)


@asynchronous
async def test_long_text_does_not_break_the_status() -> None:
    async with served() as (server, servicer), channel(server.address, ONCE) as aio_channel:
        servicer.error = InvalidInputError("prompt" * 1000, "must be short, not\n" + "🦔" * 10_000)
        with pytest.raises(InvalidInputError, match=r"must be short, not 🦔.*…$") as caught, translated():
            await EncoderServiceStub(aio_channel).Encode(EncodeRequest(prompt="x"))
        assert len(str(caught.value).encode()) < 800


@asynchronous
async def test_errors_of_grpc_itself_are_translated() -> None:
    async with (
        served(RpcSettings(receive_bytes=2048)) as (server, servicer),
        channel(server.address, ONCE) as aio_channel,
    ):
        stub = EncoderServiceStub(aio_channel)
        with pytest.raises(RemoteError, match="larger than max") as caught, translated():
            await stub.Encode(EncodeRequest(prompt="x" * 3000))
        assert caught.value.code == "RESOURCE_EXHAUSTED"
        with pytest.raises(RequestExpiredError), translated():
            await stub.Encode(EncodeRequest(prompt="wait"), timeout=0.1)
        call = stub.Encode(EncodeRequest(prompt="wait"))
        await servicer.begun.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        unknown: Any = aio_channel.unary_unary("/smalti.v1.ImageService/GetJob")
        with pytest.raises(NotSupportedError), translated():
            await unknown(b"")
    async with channel(server.address, ONCE) as aio_channel:
        with pytest.raises(UnavailableError) as refused, translated():
            await EncoderServiceStub(aio_channel).Encode(EncodeRequest(prompt="x"))
        assert refused.value.retry_after is None


def test_foreign_status_is_translated() -> None:
    foreign = error_details_pb2.ErrorInfo(reason="QUOTA", domain="example.com")
    packed = any_pb2.Any()
    packed.Pack(foreign)
    status = status_pb2.Status(code=7, message="no", details=[packed])
    error = error_of_status(status)
    assert isinstance(error, RemoteError)
    assert (error.code, error.reason, str(error)) == ("PERMISSION_DENIED", "QUOTA", "no")
    damaged = status_pb2.Status(code=14, details=[any_pb2.Any(type_url=packed.type_url, value=b"\xff")])
    assert isinstance(error_of_status(damaged), UnavailableError)
    assert isinstance(error_of_status(status_pb2.Status(code=99)), RemoteError)


def test_job_error_has_the_form_of_a_call_error() -> None:
    error = AttemptsExhaustedError("its worker was lost 5 times")
    assert reason_of(error_of_status(status_of(error))).name == "ATTEMPTS_EXHAUSTED"


def test_within_prefixes_the_field() -> None:
    with pytest.raises(InvalidInputError) as caught, within("parameters"), within("sampling"):
        raise InvalidInputError("top_p", "is 0")
    assert caught.value.field == "parameters.sampling.top_p"
    assert caught.value.problem == "is 0"
