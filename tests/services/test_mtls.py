"""The whole system as processes that speak mTLS with the settings and the certificates of the chart."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx2
import pytest
from PIL import Image

from harness.certificates import make_identity
from harness.mtls import make_secret, variables
from harness.queue import clear, settings_for
from harness.servers import S3Server, ValkeyServer
from harness.service_process import ServiceProcess
from harness.web_process import WebProcess
from smalti.registry.folder import ModelFolder
from smalti.rpc.channel import blocking_channel
from smalti.rpc.settings import RpcSettings
from smalti.v1.engine_pb2 import GetEngineRequest
from smalti.v1.engine_pb2_grpc import EngineServiceStub

pytestmark = [pytest.mark.slow, pytest.mark.server, pytest.mark.process]

STAGES = ("encoder", "generator", "decoder", "ranker")
SECONDS = 120


@dataclass(frozen=True)
class System:
    """The processes, and the folders of the certificates."""

    services: dict[str, ServiceProcess]
    web: WebProcess
    secrets: dict[str, Path]

    def calling(self, kind: str) -> RpcSettings:
        """Returns the settings of a client of a stage that shows the certificate of "gateway", "stages" or "web"."""
        return _calling(self.secrets[kind], "smalti-stages")


def _calling(secret: Path, server: str) -> RpcSettings:
    return RpcSettings(
        attempts=1,
        tls_ca=secret / "ca.crt",
        tls_client_certificate=secret / "tls.crt",
        tls_client_key=secret / "tls.key",
        tls_server_name=server,
    )


@pytest.fixture(scope="module")
def system(
    valkey: ValkeyServer, s3: S3Server, tiny: ModelFolder, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[System]:
    clear(settings_for(valkey))
    folder = tmp_path_factory.mktemp("mtls")
    authority = make_identity(folder, "authority")
    secrets = {kind: make_secret(folder, kind, authority) for kind in ("gateway", "stages", "web")}
    with ExitStack() as stack:
        services = {}
        for name in ("gateway", *STAGES):
            kind = "gateway" if name == "gateway" else "stages"
            services[name] = ServiceProcess(
                name,
                broker=valkey.url,
                store=s3.url,
                model=tiny.path,
                environment={
                    **variables(kind, secrets[kind]),
                    "SMALTI_MESSAGES_WRITE": "3",
                    "SMALTI_AUTH": "none",
                    "SMALTI_GATEWAY_DATABASE": f"sqlite:///{folder}/jobs.sqlite3",
                },
                rpc=_calling(secrets["gateway"], f"smalti-{kind}"),
            )
            stack.callback(services[name].close)
            services[name].launch()
        for each in services.values():
            each.wait_until_ready()
        web = WebProcess(
            folder / "web-process",
            {
                **variables("web", secrets["web"]),
                "SMALTI_SERVER": services["gateway"].url,
                "SMALTI_WEB_OPEN": "1",
            },
        )
        with web:
            yield System(services, web, secrets)
        for each in services.values():
            each.tell()


def generate(system: System, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Runs `smalti generate` at the gateway."""
    command = (sys.executable, "-m", "smalti", "generate", "a red fox", "--n", "1", "--candidates", "2")
    return subprocess.run(
        [*command, "--server", system.services["gateway"].url, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def test_web_service_draws_through_all_services(system: System) -> None:
    body = {"prompt": "a red fox", "n": 1, "response_format": "b64_json"}
    with httpx2.Client(timeout=SECONDS) as client:
        answer = client.post(f"{system.web.url}/v1/images/generations", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["data"][0]["b64_json"]


def test_client_with_a_certificate_draws_and_the_gateway_calls_the_decoder(
    system: System, tmp_path: Path
) -> None:
    """A picture that is given to begin with is encoded by a decoder, which the gateway calls."""
    shown = variables("web", system.secrets["web"])
    done = generate(system, "--out", str(tmp_path / "first"), **shown)
    assert done.returncode == 0, done.stderr
    first = next((tmp_path / "first").rglob("*.png"))
    # Without what it says of its tokens.
    plain = tmp_path / "plain.png"
    with Image.open(first) as picture:
        picture.convert("RGB").save(plain)
    done = generate(
        system, "--image", str(plain), "--strength", "0.5", "--out", str(tmp_path / "second"), **shown
    )
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "second").rglob("*.png"))


def test_client_without_a_certificate_is_refused_in_one_line(system: System, tmp_path: Path) -> None:
    shown = variables("web", system.secrets["web"])
    for missing in ("SMALTI_RPC_TLS_CLIENT_CERTIFICATE", "SMALTI_RPC_TLS_CLIENT_KEY"):
        del shown[missing]
    done = generate(system, "--out", str(tmp_path / "none"), **shown)
    assert done.returncode != 0
    assert done.stderr.startswith("smalti: connections to all backends failing; last error: UNAVAILABLE")
    assert done.stderr.endswith("set SMALTI_RPC_TLS_CLIENT_CERTIFICATE and SMALTI_RPC_TLS_CLIENT_KEY\n")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize("name", STAGES)
def test_stage_serves_the_gateway_and_not_the_web_service(system: System, name: str) -> None:
    def ask(kind: str) -> Any:
        with blocking_channel(system.services[name].url, system.calling(kind)) as channel:
            stub: Any = EngineServiceStub(channel)
            return stub.GetEngine(GetEngineRequest(), timeout=SECONDS)

    assert ask("gateway").engine.slots >= 1
    with pytest.raises(grpc.RpcError) as refused:
        ask("web")
    assert refused.value.code() in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED)
