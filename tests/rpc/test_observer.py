"""Metrics, traces and log fields of gRPC calls."""

import asyncio
import re

import grpc
import pytest
import structlog

from harness.grpc_server import asynchronous, served
from harness.telemetry import only, recording, sample_reader
from smalti.errors import InvalidInputError, OverloadedError
from smalti.rpc.channel import channel
from smalti.rpc.observer import CallObserver, client_interceptors
from smalti.rpc.settings import RpcSettings
from smalti.telemetry import Metrics, tracing
from smalti.v1.encoder_pb2 import EncodeRequest
from smalti.v1.encoder_pb2_grpc import EncoderServiceStub
from smalti.v1.generator_pb2 import GenerateRequest
from smalti.v1.generator_pb2_grpc import GeneratorServiceStub

TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"


@asynchronous
async def test_calls_are_counted_by_status() -> None:
    metrics = Metrics("generator")
    value = sample_reader(metrics)
    async with (
        served(interceptors=[CallObserver(metrics)]) as (server, servicer),
        channel(server.address, RpcSettings(attempts=1)) as to_server,
    ):
        encoder, generator = EncoderServiceStub(to_server), GeneratorServiceStub(to_server)
        await encoder.Encode(EncodeRequest(prompt="x"))
        for error in (
            InvalidInputError("prompt", "is bad"),
            OverloadedError("full", 1),
            RuntimeError("broken"),
        ):
            servicer.failures.append(error)
            with pytest.raises(grpc.aio.AioRpcError):
                await encoder.Encode(EncodeRequest(prompt="x"))
        with pytest.raises(grpc.aio.AioRpcError):
            await encoder.Encode(EncodeRequest(prompt="wait"), timeout=0.2)
        stream = generator.Generate(GenerateRequest())
        await stream.read()
        assert value("requests_running", entry="Generate") == 1
        stream.cancel()
        while value("requests_running", entry="Generate") or value("requests_running", entry="Encode"):
            await asyncio.sleep(0.01)
        servicer.go_on.set()
        assert len([answer async for answer in generator.Generate(GenerateRequest())]) == 2
    counted = {
        (sample.labels["entry"], sample.labels["outcome"], sample.labels["reason"]): sample.value
        for family in metrics.collect()
        for sample in family.samples
        if sample.name == "smalti_requests_total"
    }
    late = {key for key in counted if key[0] == "Encode" and key[1] in ("expired", "cancelled")}
    assert len(late) == 1  # The server's deadline or the client's, whichever came first.
    assert counted == {
        ("Encode", "done", ""): 1,
        ("Encode", "failed", "invalid_argument"): 1,
        ("Encode", "refused", "resource_exhausted"): 1,
        ("Encode", "failed", "internal"): 1,
        late.pop(): 1,
        ("Generate", "cancelled", "cancelled"): 1,
        ("Generate", "done", ""): 1,
    }
    assert value("request_seconds_count", entry="Generate", outcome="done") == 1


@asynchronous
async def test_calls_join_the_trace_of_the_caller() -> None:
    metrics = Metrics("generator")
    with recording("generator") as (collector, traced):
        options = {"settings": RpcSettings(attempts=1), "interceptors": client_interceptors()}
        async with (
            served(interceptors=[CallObserver(metrics)]) as (server, servicer),
            channel(server.address, **options) as to_server,  # type: ignore[arg-type]
            channel(server.address) as plain,
        ):
            encoder, generator = EncoderServiceStub(to_server), GeneratorServiceStub(to_server)
            with tracing.span("caller"):
                await encoder.Encode(EncodeRequest(prompt="a secret cat"))
                servicer.go_on.set()
                assert len([answer async for answer in generator.Generate(GenerateRequest())]) == 2
            servicer.failures += [InvalidInputError("prompt", "secret"), RuntimeError("secret")]
            for _ in range(2):
                with pytest.raises(grpc.aio.AioRpcError):
                    await encoder.Encode(EncodeRequest(prompt="a secret cat"))
            metadata = (("traceparent", TRACEPARENT), ("x-request-id", "mine-1"))
            await EncoderServiceStub(plain).Encode(EncodeRequest(prompt="x"), metadata=metadata)
        traced.close()
        caller = only(collector.named("caller"))
        served_spans = [span for span in collector.spans if span.kind == "server"]
        called, failed_input, failed, outside = (
            span for span in served_spans if span.attributes["rpc.method"] == "Encode"
        )
        client = {span.span: span for span in collector.spans if span.kind == "client"}
        assert client[called.parent].parent == caller.span
        assert called.name == client[called.parent].name == "smalti.v1.EncoderService/Encode"
        assert called.attributes["rpc.grpc.status_code"] == 0
        assert only(collector.named("smalti.v1.GeneratorService/Generate")).parent == caller.span
        assert (failed_input.failed, failed_input.attributes["rpc.grpc.status_code"]) == (False, 3)
        assert (failed.failed, failed.attributes["error.type"]) == (True, "INTERNAL")
        assert client[failed.parent].failed
        assert (outside.trace, outside.attributes["smalti.request"]) == (TRACE, "mine-1")
        assert {span.service for span in collector.spans} == {"smalti-generator"}
        assert "secret" not in str(collector.spans)


@asynchronous
async def test_log_of_a_call_has_its_request_id(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics("generator")
    async with (
        served(interceptors=[CallObserver(metrics)]) as (server, servicer),
        channel(server.address, RpcSettings(attempts=1)) as to_server,
    ):
        seen: dict[str, set[str]] = {}
        wait = servicer._wait

        async def note(waits: bool) -> None:
            bound = structlog.contextvars.get_contextvars()
            seen.setdefault(bound["request"], set()).add(bound["request"])
            await wait(waits)
            seen[bound["request"]].add(structlog.contextvars.get_contextvars()["request"])

        monkeypatch.setattr(servicer, "_wait", note)
        stub = EncoderServiceStub(to_server)
        calls = [
            stub.Encode(EncodeRequest(prompt="wait"), metadata=(("x-request-id", name),))
            for name in ("one", "two", "not one")
        ]
        while servicer.calls < 3:
            await asyncio.sleep(0.01)
        servicer.go_on.set()
        await asyncio.gather(*calls)
    made = next(name for name in seen if name not in ("one", "two"))
    assert re.fullmatch(r"[0-9a-f]{32}", made)
    assert seen == {name: {name} for name in ("one", "two", made)}
