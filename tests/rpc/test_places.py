"""What one client may use of a server, tested by real clients over 127.0.0.1."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest

from harness.grpc_server import ENCODER, GENERATE, asynchronous, served
from smalti.errors import InvalidInputError, OverloadedError
from smalti.rpc.channel import channel
from smalti.rpc.errors import translated
from smalti.rpc.places import CLIENT, PEER_RECEIVES, RECEIVE_SECONDS, CallKinds, Peer, Places
from smalti.rpc.settings import MEBIBYTE, RpcSettings
from smalti.v1.encoder_pb2 import EncodeRequest, EncodeResponse
from smalti.v1.encoder_pb2_grpc import EncoderServiceStub
from smalti.v1.generator_pb2 import GenerateRequest
from smalti.v1.generator_pb2_grpc import GeneratorServiceStub

ENCODE = f"/{ENCODER}/Encode"
ONCE = RpcSettings(attempts=1)
SOMEBODY, ANOTHER = Peer("192.0.2.1"), Peer("192.0.2.2")


async def encode(to_server: Any, prompt: str = "x", client: str = "") -> None:
    metadata = ((CLIENT, client),) if client else ()
    with translated():
        await EncoderServiceStub(to_server).Encode(EncodeRequest(prompt=prompt), metadata=metadata)


@asynchronous
async def test_streams_that_do_not_end_leave_the_other_calls_their_places() -> None:
    settings = RpcSettings(max_calls=2, max_streams=3)
    async with (
        served(settings, endless=(GENERATE,)) as (server, _),
        channel(server.address, ONCE) as to_server,
    ):
        stub = GeneratorServiceStub(to_server)
        streams = [stub.Generate(GenerateRequest()) for _ in range(3)]
        for stream in streams:
            await stream.read()
        with pytest.raises(OverloadedError, match="3 calls are already in progress"), translated():
            await stub.Generate(GenerateRequest()).read()
        await encode(to_server)
        streams[0].cancel()
        while server.running > 2:
            await asyncio.sleep(0.01)
        await stub.Generate(GenerateRequest()).read()


@asynchronous
async def test_client_that_the_web_service_names_is_the_caller() -> None:
    async with (
        served(RpcSettings(peer_calls=1)) as (server, servicer),
        channel(server.address, ONCE) as to_server,
    ):
        waiting = asyncio.ensure_future(encode(to_server, "wait", "2001:db8::1"))
        await servicer.begun.wait()
        with pytest.raises(OverloadedError, match="of this client"):
            await encode(to_server, client="2001:db8::2")  # The same network.
        await encode(to_server, client="2001:db8:0:1::1")
        await encode(to_server)  # The web service itself.
        servicer.go_on.set()
        await waiting
        await encode(to_server, client="2001:db8::2")
    async with (
        served(RpcSettings(peer_calls=1, trusted_peers="192.0.2.1")) as (server, servicer),
        channel(server.address, ONCE) as to_server,
    ):
        waiting = asyncio.ensure_future(encode(to_server, "wait", "2001:db8::1"))
        await servicer.begun.wait()
        with pytest.raises(OverloadedError, match="of this client"):
            await encode(to_server, client="2001:db8:0:1::1")  # Nobody believes it.
        servicer.go_on.set()
        await waiting


@asynchronous
async def test_call_without_a_place_is_refused_before_its_request_arrives() -> None:
    async def nothing() -> AsyncIterator[EncodeRequest]:
        await asyncio.Event().wait()
        yield EncodeRequest()

    async with (
        served(RpcSettings(max_calls=1)) as (server, servicer),
        channel(server.address, ONCE) as to_server,
    ):
        waiting = asyncio.ensure_future(encode(to_server, "wait"))
        await servicer.begun.wait()
        call = to_server.stream_unary(
            ENCODE,
            request_serializer=EncodeRequest.SerializeToString,
            response_deserializer=EncodeResponse.FromString,
        )(nothing())
        assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        servicer.go_on.set()
        await waiting


@asynchronous
async def test_large_request_is_refused_where_none_is_needed() -> None:
    async with served(small=(ENCODE,)) as (server, _), channel(server.address, ONCE) as to_server:
        await encode(to_server, "x" * 2**19)
        with pytest.raises(InvalidInputError, match="request: must have at most 1048576 bytes"):
            await encode(to_server, "x" * 2**21)


@asynchronous
async def test_a_part_of_the_places_is_kept_for_short_calls() -> None:
    places = Places(RpcSettings(max_calls=20, peer_calls=20), CallKinds(kept=("/Cancel",)))
    calls = [places.call("/Create", SOMEBODY) for _ in range(18)]
    for call in calls:
        call.__enter__()
    for peer in (SOMEBODY, ANOTHER):
        with pytest.raises(OverloadedError), places.call("/Create", peer):
            pass
        with places.call("/Cancel", peer):
            assert places.running == 19
    for call in calls:
        call.__exit__(None, None, None)
    assert places.running == 0


@asynchronous
async def test_one_client_has_half_of_the_bytes() -> None:
    places = Places(RpcSettings(request_bytes=16 * 2**20), CallKinds())
    with places.request("/Create", SOMEBODY, 8 * 2**20):
        with pytest.raises(OverloadedError), places.request("/Create", SOMEBODY, 2 * 2**20):
            pass
        with (
            places.request("/Create", ANOTHER, 8 * 2**20),
            pytest.raises(OverloadedError),
            places.request("/Create", Peer("192.0.2.3"), 1),
        ):
            pass
        with places.request("/Create", Peer("192.0.2.3"), 1):
            pass


@asynchronous
async def test_web_service_that_names_nobody_has_the_limits_of_the_server_alone() -> None:
    settings = RpcSettings(peer_calls=1, request_bytes=8 * MEBIBYTE, receiving=2 * PEER_RECEIVES)
    places = Places(settings, CallKinds())
    web = places.peer("ipv4:127.0.0.1:50000", {})
    with places.call(ENCODE, web), places.call(ENCODE, web):
        pass
    with places.request(ENCODE, web, 8 * MEBIBYTE), pytest.raises(OverloadedError):
        places.request(ENCODE, web, 1).__enter__()
    with pytest.raises(OverloadedError):
        places.request(ENCODE, SOMEBODY, 8 * MEBIBYTE).__enter__()
    async with AsyncExitStack() as receiving, asyncio.timeout(RECEIVE_SECONDS / 2):
        for _ in range(2 * PEER_RECEIVES):
            await receiving.enter_async_context(places.receive(web))
