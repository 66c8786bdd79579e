"""What every gRPC server does around its calls, tested by real clients over 127.0.0.1."""

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from harness.grpc_server import ENCODER, GENERATE, GENERATOR, asynchronous, served
from harness.paths import ROOT
from smalti.errors import (
    DrainingError,
    InvalidInputError,
    OverloadedError,
    RequestCancelledError,
    UnavailableError,
)
from smalti.rpc.channel import channel, service_config
from smalti.rpc.errors import translated
from smalti.rpc.server import Server, serve
from smalti.rpc.settings import RpcSettings, rpc_settings
from smalti.v1.encoder_pb2 import EncodeRequest
from smalti.v1.encoder_pb2_grpc import EncoderServiceStub
from smalti.v1.generator_pb2 import GenerateRequest
from smalti.v1.generator_pb2_grpc import GeneratorServiceStub

ONCE = RpcSettings(attempts=1)
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


async def health(address: str, service: str = "") -> int:
    async with channel(address, ONCE) as to_server:
        stub: Any = health_pb2_grpc.HealthStub(to_server)
        status: int = (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status
        return status


@asynchronous
async def test_health_follows_the_engine() -> None:
    async with served(RpcSettings(health_port=0)) as (server, servicer):
        assert server.health_port is not None
        for well, status in ((True, SERVING), (False, NOT_SERVING)):
            servicer.healthy = well
            for service in ("", ENCODER, GENERATOR):
                assert await health(server.address, service) == status
                assert await health(f"127.0.0.1:{server.health_port}", service) == status
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health(server.address, "smalti.v1.ImageService")
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND


@asynchronous
async def test_failing_health_check_means_not_serving(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> bool:
        raise RuntimeError("no answer")

    async with await serve(lambda server: None, healthy=broken, settings=RpcSettings(grace=0)) as server:
        assert await health(server.address) == NOT_SERVING
    assert "no answer" in caplog.text


@asynchronous
async def test_health_port_serves_only_health() -> None:
    async with served(RpcSettings(health_port=0)) as (server, _):
        async with channel(f"127.0.0.1:{server.health_port}", ONCE) as to_server:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await EncoderServiceStub(to_server).Encode(EncodeRequest(prompt="x"))
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


@asynchronous
async def test_health_watch_reports_changes_and_ends_when_the_server_stops() -> None:
    async with (
        served(RpcSettings(max_deadline=0.2)) as (server, servicer),
        channel(server.address, ONCE) as to_server,
    ):
        stub: Any = health_pb2_grpc.HealthStub(to_server)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=ENCODER))
        assert (await watch.read()).status == SERVING
        servicer.healthy = False
        # The maximum deadline has passed; it does not apply to health watches.
        assert (await watch.read()).status == NOT_SERVING
        servicer.healthy = True
        assert (await watch.read()).status == SERVING
        began = time.monotonic()
        stopping = asyncio.create_task(server.stop(30))
        assert (await watch.read()).status == NOT_SERVING
        assert await watch.read() is grpc.aio.EOF
        await stopping
        assert time.monotonic() - began < 10  # Open watches do not delay the stop.


@asynchronous
async def test_reflection_must_be_enabled() -> None:
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    for settings in (RpcSettings(reflection=True), RpcSettings()):
        async with served(settings) as (server, _), channel(server.address, ONCE) as to_server:
            reflection: Any = reflection_pb2_grpc
            stub = reflection.ServerReflectionStub(to_server)
            call = stub.ServerReflectionInfo(iter([request]))
            if settings.reflection:
                names = {entry.name for entry in (await call.read()).list_services_response.service}
                assert {ENCODER, GENERATOR, "grpc.health.v1.Health"} <= names
            else:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call.read()
                assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("asked", "seconds"), [(None, 0.7), (0.5, 0.5), (30.0, 1.0)], ids=["none", "its own", "too long"]
)
@asynchronous
async def test_call_ends_at_its_deadline(asked: float | None, seconds: float) -> None:
    settings = RpcSettings(default_deadline=0.7, max_deadline=1.0)
    async with served(settings) as (server, servicer), channel(server.address, ONCE) as to_server:
        encoder, generator = EncoderServiceStub(to_server), GeneratorServiceStub(to_server)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await encoder.Encode(EncodeRequest(prompt="wait"), timeout=asked)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read_all(generator.Generate(GenerateRequest(), timeout=asked))
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        while server.running:
            await asyncio.sleep(0.01)
        # The time limit given to the engine. gRPC rounds the remaining time up, by less than a millisecond.
        assert servicer.seconds <= seconds + 0.01
        assert servicer.cancelled == servicer.calls


async def read_all(stream: Any) -> None:
    async for _ in stream:
        pass


@asynchronous
async def test_slow_reader_does_not_hold_a_stream_past_its_deadline() -> None:
    async with (
        served(RpcSettings(default_deadline=0.3)) as (server, servicer),
        channel(server.address, ONCE) as to_server,
    ):
        stream = GeneratorServiceStub(to_server).Generate(GenerateRequest())
        await servicer.begun.wait()
        while server.running:  # The client does not read.
            await asyncio.sleep(0.01)
        stream.cancel()


@asynchronous
async def test_call_ends_when_its_client_cancels() -> None:
    async with served() as (server, servicer), channel(server.address, ONCE) as to_server:
        stream = GeneratorServiceStub(to_server).Generate(GenerateRequest())
        await stream.read()
        await servicer.begun.wait()
        stream.cancel()
        while server.running:
            await asyncio.sleep(0.01)
        assert servicer.cancelled == 1


@asynchronous
async def test_calls_above_the_limit_are_refused_but_probes_are_not() -> None:
    async with (
        served(RpcSettings(max_calls=2)) as (server, servicer),
        channel(server.address, ONCE) as to_server,
    ):
        stub = EncoderServiceStub(to_server)
        begun = [asyncio.ensure_future(stub.Encode(EncodeRequest(prompt="wait"))) for _ in range(2)]
        while server.running < 2:
            await asyncio.sleep(0.01)
        with pytest.raises(OverloadedError) as caught, translated():
            await stub.Encode(EncodeRequest(prompt="x"))
        assert caught.value.retry_after == 1
        assert await health(server.address) == SERVING
        servicer.go_on.set()
        await asyncio.gather(*begun)
        await stub.Encode(EncodeRequest(prompt="x"))


@asynchronous
async def test_message_over_the_receive_limit_is_refused() -> None:
    async with (
        served(RpcSettings(receive_bytes=5 * 2**20)) as (server, _),
        channel(server.address, RpcSettings(attempts=1, receive_bytes=2**20)) as to_server,
    ):
        stub = EncoderServiceStub(to_server)
        await stub.Encode(EncodeRequest(prompt="x" * 2**19))
        for size in (2 * 2**20, 6 * 2**20):  # Over the client's limit for responses; over the server's limit.
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Encode(EncodeRequest(prompt="x" * size))
            assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


async def repeat(stub: Any) -> None:
    while True:
        await stub.Encode(EncodeRequest(prompt="x"))
        await asyncio.sleep(0.02)


@asynchronous
async def test_drain_finishes_running_calls_and_refuses_new_ones() -> None:
    async with (
        served(RpcSettings(drain_delay=1.5)) as (server, servicer),
        channel(server.address, ONCE) as to_server,
    ):
        stub = EncoderServiceStub(to_server)
        running = asyncio.ensure_future(stub.Encode(EncodeRequest(prompt="wait")))
        stream = GeneratorServiceStub(to_server).Generate(GenerateRequest())
        await stream.read()
        await servicer.begun.wait()
        while server.running < 2:
            await asyncio.sleep(0.01)
        stopping = asyncio.create_task(server.stop(30))
        while await health(server.address) != NOT_SERVING:
            await asyncio.sleep(0.01)
        await stub.Encode(EncodeRequest(prompt="x"))  # Load balancers may still send calls.
        # A call that arrives while the server stops listening is cancelled; later ones cannot connect.
        with pytest.raises((UnavailableError, RequestCancelledError)), translated():
            await repeat(stub)
        assert not stopping.done()
        servicer.go_on.set()
        assert (await running).encoding.reading.drawn == "wait"
        assert isinstance(await stream.read(), object)
        assert await stream.read() is grpc.aio.EOF
        await stopping
        assert servicer.cancelled == 0
        await server.wait()
        await server.stop()  # A second stop does nothing.


@asynchronous
async def test_calls_are_cancelled_after_the_grace_period() -> None:
    async with served() as (server, servicer), channel(server.address, ONCE) as to_server:
        running = asyncio.ensure_future(EncoderServiceStub(to_server).Encode(EncodeRequest(prompt="wait")))
        await servicer.begun.wait()
        await server.stop(0.2)
        with pytest.raises(grpc.aio.AioRpcError):
            await running
        while server.running:
            await asyncio.sleep(0.01)
        assert servicer.cancelled == 1


@asynchronous
async def test_draining_server_ends_endless_streams() -> None:
    async with served(endless=(GENERATE,)) as (server, servicer), channel(server.address, ONCE) as to_server:
        stream = GeneratorServiceStub(to_server).Generate(GenerateRequest())
        await stream.read()
        await servicer.begun.wait()
        stopping = asyncio.create_task(server.stop(30))
        with pytest.raises(DrainingError), translated():
            await stream.read()
        await stopping
        assert servicer.cancelled == 1


@asynchronous
async def test_second_server_on_a_port_is_refused() -> None:
    async with served() as (server, _):
        with pytest.raises(
            InvalidInputError, match=rf"^SMALTI_RPC_PORT: .*:{server.port}: the port is in use"
        ):
            async with served(RpcSettings(port=server.port)):
                pass
        with pytest.raises(InvalidInputError, match=r"^SMALTI_RPC_HEALTH_PORT: "):
            async with served(RpcSettings(health_port=server.port)):
                pass


@asynchronous
async def test_call_is_retried_only_when_the_server_is_unavailable() -> None:
    away, full = UnavailableError("the store does not answer"), OverloadedError("full", 1.0)
    async with served() as (server, servicer), channel(server.address, RpcSettings(attempts=3)) as to_server:
        stub = EncoderServiceStub(to_server)
        servicer.failures = [away, away]
        await stub.Encode(EncodeRequest(prompt="x"))
        assert servicer.calls == 3
        for failures, calls in (([away] * 3, 3), ([full], 1), ([RuntimeError("broken")], 1)):
            servicer.failures, servicer.calls = list(failures), 0
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.Encode(EncodeRequest(prompt="x"))
            assert servicer.calls == calls


def test_service_config_retries_only_unavailable() -> None:
    policy = service_config(RpcSettings())["methodConfig"][0]["retryPolicy"]
    assert policy["retryableStatusCodes"] == ["UNAVAILABLE"]
    assert policy["maxAttempts"] == 4
    assert "methodConfig" not in service_config(ONCE)
    json.dumps(service_config(RpcSettings()))


@pytest.mark.parametrize(
    "target", ["", "host", ":9000", "host:", "host:70000", "http://host:1", "a b:1", "::1:9000"]
)
def test_invalid_target_is_refused(target: str) -> None:
    with pytest.raises(InvalidInputError, match=r"^server: .* must have the form host:port"):
        channel(target, RpcSettings(plaintext=True))


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALTI_RPC_PORT", "9001")
    monkeypatch.setenv("SMALTI_RPC_HEALTH_PORT", "")
    assert rpc_settings().port == 9001
    assert rpc_settings().health_port is None
    monkeypatch.setenv("SMALTI_RPC_PORT", "70000")
    with pytest.raises(InvalidInputError, match=r"^SMALTI_RPC_PORT: .*65535, not '70000'"):
        rpc_settings()


FOREIGN_CLIENT = '''
"""Knows only the address and the compiled contract, and imports nothing of Smalti."""
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "smalti" or name.startswith("google.rpc"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Refuse())

import grpc
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FileDescriptorSet

pool = descriptor_pool.DescriptorPool()
for file in FileDescriptorSet.FromString(open(sys.argv[1], "rb").read()).file:
    pool.Add(file)

def message(name):
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))

def call(channel, service, method):
    found = pool.FindServiceByName(service).methods_by_name[method]
    kind = channel.unary_stream if found.server_streaming else channel.unary_unary
    request, response = message(found.input_type.full_name), message(found.output_type.full_name)
    return request, kind(f"/{service}/{method}", request.SerializeToString, response.FromString)

with grpc.insecure_channel(sys.argv[2]) as channel:
    request, encode = call(channel, "smalti.v1.EncoderService", "Encode")
    print(encode(request(prompt="a blue cat")).encoding.reading.drawn)
    request, generate = call(channel, "smalti.v1.GeneratorService", "Generate")
    try:
        for answer in generate(request(seed=2**63 - 1, candidates=[0, 1])):
            print(answer.WhichOneof("event"))
    except grpc.RpcError as error:
        print(error.code().name)
        packed = dict(error.trailing_metadata())["grpc-status-details-bin"]
        for detail in message("google.rpc.Status").FromString(packed).details:
            found = message(detail.TypeName())()
            detail.Unpack(found)
            print(detail.TypeName(), getattr(found, "reason", ""))
'''


@asynchronous
async def test_client_with_only_the_contract_can_call_and_read_errors(tmp_path: Path) -> None:
    script = tmp_path / "client.py"
    script.write_text(FOREIGN_CLIENT, encoding="utf-8")

    async def run(server: Server) -> list[str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(script), str(ROOT / "protos" / "smalti-v1.binpb"), server.address,
            stdout=subprocess.PIPE, cwd=tmp_path, env={"PATH": os.environ["PATH"]},
        )  # fmt: skip
        output, _ = await process.communicate()
        assert process.returncode == 0
        return output.decode().splitlines()

    async with served() as (server, servicer):
        servicer.go_on.set()
        assert await run(server) == ["a blue cat", "rows", "rows"]
    async with served(RpcSettings(default_deadline=0.5)) as (server, servicer):
        assert await run(server) == [
            "a blue cat",
            "rows",
            "DEADLINE_EXCEEDED",
            "google.rpc.ErrorInfo EXPIRED",
        ]
