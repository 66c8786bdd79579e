"""Requests whose bytes gRPC would read before anybody can say what is wrong with them."""

from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from harness.grpc_server import ENCODER, GENERATE, asynchronous, served
from smalti.errors import InvalidInputError, SmaltiError
from smalti.rpc.errors import error_of
from smalti.rpc.requests import MAX_DURATION, MAX_NANOS, MAX_TIME, MIN_TIME, read_request
from smalti.v1.image_pb2 import CreateImagesRequest, ListJobsRequest
from smalti.v1.job_pb2 import ImageParameters
from smalti.v1.model_pb2 import ModelReference

BAD = b"\xff\xfe"


def put_bad_text(message: Message) -> bytes:
    """Returns the bytes of a message in which the text "????" is no UTF-8."""
    content = message.SerializeToString()
    assert content.count(b"??") >= 1
    return content.replace(b"??", BAD)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (CreateImagesRequest(request_id="??"), "request_id"),
        (CreateImagesRequest(parameters=ImageParameters(prompt="??")), "parameters.prompt"),
        (CreateImagesRequest(labels={"a": "??"}), "labels"),
        (CreateImagesRequest(labels={"??": "a"}), "labels"),
        (
            CreateImagesRequest(parameters=ImageParameters(model=ModelReference(name="??"))),
            "parameters.model.name",
        ),
    ],
)
def test_text_that_is_not_utf8_is_refused_by_the_name_of_its_field(request_: Message, field: str) -> None:
    with pytest.raises(InvalidInputError, match="must be text in UTF-8") as caught:
        read_request(CreateImagesRequest.FromString, put_bad_text(request_))
    assert caught.value.field == field


@pytest.mark.parametrize("content", [b"\xff", b"\x0a", b"\x12\x7f\x00", b"\x0c" * 200, b"\x0b" * 200])
def test_bytes_that_are_no_message_are_refused(content: bytes) -> None:
    with pytest.raises(InvalidInputError, match="request: cannot be read"):
        read_request(CreateImagesRequest.FromString, content)


@given(st.binary(max_size=64))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    try:
        assert isinstance(read_request(CreateImagesRequest.FromString, content), CreateImagesRequest)
    except InvalidInputError:
        return


def seconds(value: int, nanos: int = 0) -> Duration:
    return Duration(seconds=value, nanos=nanos)


@pytest.mark.parametrize(
    ("duration", "holds"),
    [
        (seconds(MAX_DURATION), True),
        (seconds(MAX_DURATION + 1), False),
        (seconds(-MAX_DURATION - 1), False),
        (seconds(1, MAX_NANOS), True),
        (seconds(1, MAX_NANOS + 1), False),
        (seconds(-1, -MAX_NANOS), True),
        (seconds(0, -MAX_NANOS - 1), False),
        (seconds(1, -1), False),
        (seconds(-1, 1), False),
        (seconds(0, -1), True),
    ],
)
def test_duration_out_of_its_range_is_refused_by_name(duration: Duration, holds: bool) -> None:
    content = CreateImagesRequest(retention=duration).SerializeToString()
    if holds:
        assert read_request(CreateImagesRequest.FromString, content).retention == duration
        return
    with pytest.raises(InvalidInputError, match="retention: must be a duration"):
        read_request(CreateImagesRequest.FromString, content)


@pytest.mark.parametrize(
    ("time", "holds"),
    [
        (Timestamp(seconds=MIN_TIME), True),
        (Timestamp(seconds=MIN_TIME - 1), False),
        (Timestamp(seconds=MAX_TIME, nanos=MAX_NANOS), True),
        (Timestamp(seconds=MAX_TIME + 1), False),
        (Timestamp(seconds=2**62), False),
        (Timestamp(nanos=-1), False),
        (Timestamp(nanos=MAX_NANOS + 1), False),
    ],
)
def test_time_out_of_its_range_is_refused_by_name(time: Timestamp, holds: bool) -> None:
    content = ListJobsRequest(created_before=time).SerializeToString()
    if holds:
        assert read_request(ListJobsRequest.FromString, content).created_before == time
        return
    with pytest.raises(InvalidInputError, match="created_before: must be a time of the years 1 to 9999"):
        read_request(ListJobsRequest.FromString, content)


@asynchronous
async def test_what_fails_before_the_servicer_has_a_status_of_ours() -> None:
    async with served() as (server, _), grpc.aio.insecure_channel(server.address) as channel:
        content = b"\x0a\x02" + BAD
        raw: Any = channel
        for answer in (
            raw.unary_unary(f"/{ENCODER}/Encode")(content),
            raw.unary_stream(GENERATE)(content).read(),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                await answer
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            error: SmaltiError = error_of(caught.value)
            assert isinstance(error, InvalidInputError)
            assert "class" not in str(error)
