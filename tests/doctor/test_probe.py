"""The health check as a command."""

import asyncio

import pytest

from harness.grpc_server import ENCODER, asynchronous
from smalti.doctor.probe import find_rpc_problem, main
from smalti.rpc.server import serve
from smalti.rpc.settings import RpcSettings


@asynchronous
async def test_probe_says_what_is_not_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    healthy, writable = True, True

    async def can_write() -> bool:
        return writable

    server = await serve(
        lambda server: None,
        healthy=lambda: healthy,
        needs={"store": can_write},
        settings=RpcSettings(host="0.0.0.0", plaintext=True, health_port=0),
    )

    async def problem(name: str) -> str:
        return await asyncio.to_thread(find_rpc_problem, name)

    async with server:
        monkeypatch.setenv("SMALTI_RPC_HOST", "0.0.0.0")
        monkeypatch.setenv("SMALTI_RPC_HEALTH_PORT", str(server.health_port))
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        assert (await problem(""), await problem("store")) == ("", "")
        writable = False
        assert (await problem(""), await problem("store")) == ("", "store is NOT_SERVING")
        healthy, writable = False, True
        assert await problem("") == "the process is NOT_SERVING"
        assert await problem("store") == "store is NOT_SERVING"
        assert (await problem(ENCODER)).endswith("does not answer: not_found")
    assert (await problem("")).endswith("does not answer: unavailable")


@asynchronous
async def test_failing_check_of_a_need_means_not_serving(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken() -> bool:
        raise RuntimeError("no answer")

    settings = RpcSettings(grace=0, health_port=0)
    async with await serve(
        lambda server: None, healthy=lambda: True, needs={"store": broken}, settings=settings
    ) as server:
        monkeypatch.setenv("SMALTI_RPC_HEALTH_PORT", str(server.health_port))
        assert await asyncio.to_thread(find_rpc_problem, "store") == "store is NOT_SERVING"
    assert "no answer" in caplog.text


@pytest.mark.parametrize(
    ("port", "arguments", "line"),
    [
        ("", ["rpc"], "SMALTI_RPC_HEALTH_PORT: is not set; set it to a port that answers health checks"),
        ("many", ["rpc", ""], "SMALTI_RPC_HEALTH_PORT: input should be a valid integer"),
        ("9", ["gateway"], "must be called with rpc, with rpc and a name, or with web"),
    ],
)
def test_what_is_set_wrong_is_one_line(
    port: str,
    arguments: list[str],
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SMALTI_RPC_HEALTH_PORT", port)
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"smalti probe: {line}")
    assert said.count("\n") == 1
