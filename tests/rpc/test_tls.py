"""TLS and mTLS with generated certificates: accepted and refused peers, and errors about unusable files."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption

from harness.certificates import Identity, make_identity, private_key
from harness.grpc_server import asynchronous, served
from harness.image_service import served_gateway
from harness.telemetry import captured_log
from smalti.client import Client
from smalti.errors import InvalidInputError, PermissionDeniedError, UnavailableError
from smalti.rpc.channel import blocking_channel, channel
from smalti.rpc.errors import translated
from smalti.rpc.identity import system_only
from smalti.rpc.settings import RpcSettings
from smalti.rpc.tls import server_credentials
from smalti.v1.encoder_pb2 import EncodeRequest
from smalti.v1.encoder_pb2_grpc import EncoderServiceStub


@dataclass(frozen=True)
class Identities:
    """The identities of the tests."""

    authority: Identity
    server: Identity
    client: Identity
    other_authority: Identity
    stranger: Identity
    """Signed by the other authority."""


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Identities:
    folder = tmp_path_factory.mktemp("certificates")
    authority, other = make_identity(folder, "authority"), make_identity(folder, "other-authority")
    return Identities(
        authority,
        make_identity(folder, "server", signed_by=authority),
        make_identity(folder, "client", signed_by=authority),
        other,
        make_identity(folder, "stranger", signed_by=other),
    )


def serving(identities: Identities, **more: Any) -> RpcSettings:
    return RpcSettings(
        tls_certificate=identities.server.certificate_file, tls_key=identities.server.key_file, **more
    )


def calling(authority: Identity | None, client: Identity | None = None, **more: Any) -> RpcSettings:
    return RpcSettings(
        attempts=1,
        tls_ca=authority.certificate_file if authority else None,
        tls_client_certificate=client.certificate_file if client else None,
        tls_client_key=client.key_file if client else None,
        **more,
    )


async def call(address: str, settings: RpcSettings) -> str:
    async with channel(address, settings) as to_server:
        with translated():
            answer = await EncoderServiceStub(to_server).Encode(EncodeRequest(prompt="hello"))
        return answer.encoding.reading.drawn


@asynchronous
async def test_client_verifies_the_server(identities: Identities) -> None:
    async with served(serving(identities)) as (server, _):
        assert await call(server.address, calling(identities.authority)) == "hello"
        for wrong in (
            calling(identities.other_authority),
            calling(None, tls=True),  # Trusts only the authorities that gRPC includes.
            calling(None),  # Without TLS.
            calling(identities.authority, tls_server_name="elsewhere.example"),
        ):
            with pytest.raises(UnavailableError):
                await call(server.address, wrong)


def test_client_reads_tls_settings_from_the_environment(
    identities: Identities, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = serving(identities, tls_client_ca=identities.authority.certificate_file)
    with served_gateway(settings) as gateway:
        with Client(gateway.address) as client, pytest.raises(UnavailableError):
            client.model()
        for variable, file in (
            ("CA", identities.authority.certificate_file),
            ("CLIENT_CERTIFICATE", identities.client.certificate_file),
            ("CLIENT_KEY", identities.client.key_file),
        ):
            monkeypatch.setenv(f"SMALTI_RPC_TLS_{variable}", str(file))
        with Client(gateway.address) as client:
            assert len(client.generate("a fox")) == 3


def test_client_whose_certificate_is_missing_or_refused_is_told_the_remedy(identities: Identities) -> None:
    missing = r"set SMALTI_RPC_TLS_CLIENT_CERTIFICATE and SMALTI_RPC_TLS_CLIENT_KEY$"
    refused = r"the server may not accept the certificate of SMALTI_RPC_TLS_CLIENT_CERTIFICATE$"
    settings = serving(identities, tls_client_ca=identities.authority.certificate_file)
    with served_gateway(settings) as gateway:
        for identity, remedy in ((None, missing), (identities.stranger, refused)):
            calls = calling(identities.authority, identity)
            with Client(gateway.address, settings=calls) as client:
                with pytest.raises(UnavailableError, match=remedy):
                    client.model()
                with pytest.raises(UnavailableError, match=remedy):
                    list(client.watch("job-0"))
        with (
            Client(gateway.address, settings=calling(identities.other_authority)) as client,
            pytest.raises(UnavailableError) as other,
        ):
            client.model()
    assert "SMALTI_" not in str(other.value)  # It is the client that has refused the server.


@asynchronous
async def test_stage_serves_the_system_alone(identities: Identities, tmp_path: Path) -> None:
    """Certificates of the authority that are not the system's are those of tenants."""
    ours = make_identity(tmp_path, "ours", signed_by=identities.authority, uri="spiffe://test/system")
    tenant = make_identity(
        tmp_path, "tenant", signed_by=identities.authority, host="127.0.0.9", uri="spiffe://test/tenant"
    )
    authority = identities.authority.certificate_file
    # Unset, the system's names are those of the server's own certificate.
    for names in ("", "spiffe://test/other, spiffe://test/system"):
        settings = serving(identities, tls_client_ca=authority, system_names=names)
        async with served(settings, authenticate=system_only(settings)) as (server, _):
            assert await call(server.address, calling(identities.authority, ours)) == "hello"
            with captured_log() as log, pytest.raises(PermissionDeniedError, match="serves the system alone"):
                await call(server.address, calling(identities.authority, tenant))
            assert log.find("refused")["logger"] == "smalti.audit"
            assert "spiffe://test/tenant" in log.find("refused")["who"]


def test_stage_without_mtls_knows_nobody(identities: Identities) -> None:
    assert system_only(serving(identities)) is None
    assert system_only(RpcSettings(system_names="spiffe://test/system")) is None


@asynchronous
async def test_server_verifies_clients(identities: Identities) -> None:
    settings = serving(identities, tls_client_ca=identities.authority.certificate_file, health_port=0)
    async with served(settings) as (server, servicer):
        assert await call(server.address, calling(identities.authority, identities.client)) == "hello"
        for wrong in (
            calling(identities.authority),
            calling(identities.authority, identities.stranger),
            calling(None),
        ):
            with pytest.raises(UnavailableError):
                await call(server.address, wrong)
        assert servicer.calls == 1
        # The health port requires no certificate, because a kubelet has none.
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.health_port}") as to_health:
            check: Any = to_health.unary_unary("/grpc.health.v1.Health/Check")
            assert await check(b"") == b"\x08\x01"


@asynchronous
async def test_server_name_setting_overrides_the_host(identities: Identities, tmp_path: Path) -> None:
    elsewhere = make_identity(tmp_path, "elsewhere", signed_by=identities.authority, host="192.0.2.1")
    settings = RpcSettings(tls_certificate=elsewhere.certificate_file, tls_key=elsewhere.key_file)
    async with served(settings) as (server, _):
        with pytest.raises(UnavailableError):
            await call(server.address, calling(identities.authority))
        named = calling(identities.authority, tls_server_name="192.0.2.1")
        assert await call(server.address, named) == "hello"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"tls_key": None}, r"^SMALTI_RPC_TLS_KEY: is not set, but SMALTI_RPC_TLS_CERTIFICATE is"),
        ({"tls_certificate": None}, r"^SMALTI_RPC_TLS_CERTIFICATE: is not set, but SMALTI_RPC_TLS_KEY is"),
        (
            {"tls_certificate": "absent.pem"},
            r"^SMALTI_RPC_TLS_CERTIFICATE: .*absent\.pem cannot be read: No such",
        ),
        (
            {"tls_certificate": "folder"},
            r"^SMALTI_RPC_TLS_CERTIFICATE: .*folder cannot be read: Is a directory",
        ),
        ({"tls_certificate": "noise"}, r"^SMALTI_RPC_TLS_CERTIFICATE: .*noise contains no PEM certificate"),
        ({"tls_certificate": "bytes"}, r"^SMALTI_RPC_TLS_CERTIFICATE: .*bytes contains no PEM certificate"),
        (
            {"tls_key": "noise"},
            r"^SMALTI_RPC_TLS_KEY: .*noise is not a PEM private key, or does not belong to",
        ),
        (
            {"tls_key": "other.key"},
            r"^SMALTI_RPC_TLS_KEY: .*other\.key is not a PEM private key, or does not belong to",
        ),
        ({"tls_key": "locked.key"}, r"^SMALTI_RPC_TLS_KEY: .*locked\.key is encrypted; remove its password"),
        ({"tls_client_ca": "noise"}, r"^SMALTI_RPC_TLS_CLIENT_CA: .*noise contains no PEM certificate"),
        (
            {"tls_certificate": None, "tls_key": None, "tls_client_ca": "server.pem"},
            r"^SMALTI_RPC_TLS_CLIENT_CA: needs SMALTI_RPC_TLS_CERTIFICATE and SMALTI_RPC_TLS_KEY; set",
        ),
    ],
)
def test_unusable_file_is_named(changes: dict[str, str | None], line: str, tmp_path: Path) -> None:
    server = make_identity(tmp_path, "server")
    make_identity(tmp_path, "other")
    (tmp_path / "folder").mkdir()
    (tmp_path / "noise").write_text("noise")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "locked.key").write_bytes(private_key(server.key, BestAvailableEncryption(b"secret")))
    files = {"tls_certificate": "server.pem", "tls_key": "server.key"} | changes
    paths: dict[str, Any] = {name: tmp_path / file for name, file in files.items() if file is not None}
    settings = RpcSettings(**paths)
    with pytest.raises(InvalidInputError, match=line) as caught:
        server_credentials(settings)
    assert "\n" not in str(caught.value)


@asynchronous
async def test_plaintext_beyond_localhost_must_be_enabled() -> None:
    with pytest.raises(
        InvalidInputError,
        match=r"^SMALTI_RPC_TLS_CERTIFICATE: is not set, so others could read the traffic",
    ):
        async with served(RpcSettings(host="0.0.0.0")):
            pass
    async with served(RpcSettings(host="0.0.0.0", plaintext=True)) as (server, _):
        assert await call(f"127.0.0.1:{server.port}", RpcSettings(attempts=1)) == "hello"
        assert await call(f"localhost:{server.port}", RpcSettings(attempts=1)) == "hello"
    for target in (
        "encoder:9000",
        "dns:///encoder.example:9000",
        "127.evil.example:9000",
        "[2001:db8::1]:9000",
    ):
        with pytest.raises(InvalidInputError, match=r"^SMALTI_RPC_TLS: is not set"):
            channel(target, RpcSettings())
        await channel(target, RpcSettings(plaintext=True)).close()
    await channel("[::1]:9000", RpcSettings()).close()


@asynchronous
async def test_renewed_certificates_are_used_without_a_restart(
    identities: Identities, tmp_path: Path
) -> None:
    """Server and channel read their files again; running channels take the new certificate and the new authority."""
    first = make_identity(tmp_path, "authority")
    make_identity(tmp_path, "server", signed_by=first)
    make_identity(tmp_path, "client", signed_by=first)
    server_settings = RpcSettings(
        tls_certificate=tmp_path / "server.pem",
        tls_key=tmp_path / "server.key",
        tls_client_ca=tmp_path / "authority.pem",
    )
    client_settings = RpcSettings(
        attempts=1,
        tls_ca=tmp_path / "authority.pem",
        tls_client_certificate=tmp_path / "client.pem",
        tls_client_key=tmp_path / "client.key",
    )
    old = tmp_path / "old"
    old.mkdir()
    stale = RpcSettings(
        attempts=1,
        tls_ca=old / "authority.pem",
        tls_client_certificate=old / "client.pem",
        tls_client_key=old / "client.key",
    )
    for name in ("authority.pem", "client.pem", "client.key"):
        (old / name).write_bytes((tmp_path / name).read_bytes())
    async with served(server_settings) as (server, _), channel(server.address, client_settings) as to_server:
        stub: Any = EncoderServiceStub(to_server)
        with blocking_channel(server.address, client_settings) as blocking:
            blocking_stub: Any = EncoderServiceStub(blocking)
            request = EncodeRequest(prompt="hello")
            await stub.Encode(request)
            await asyncio.to_thread(blocking_stub.Encode, request)
            # A half-replaced pair leaves everything as it was.
            (tmp_path / "server.key").write_bytes(identities.server.key_file.read_bytes())
            assert await call(server.address, stale) == "hello"
            second = make_identity(tmp_path, "authority")
            make_identity(tmp_path, "server", signed_by=second)
            make_identity(tmp_path, "client", signed_by=second)
            with pytest.raises(UnavailableError):
                await call(server.address, stale)
            assert await call(server.address, client_settings) == "hello"
            await stub.Encode(request)
            await asyncio.to_thread(blocking_stub.Encode, request)


def test_key_that_others_can_read_is_reported(
    identities: Identities, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = make_identity(tmp_path, "server")
    settings = RpcSettings(tls_certificate=server.certificate_file, tls_key=server.key_file)
    for mode, reported in ((0o644, True), (0o660, True), (0o600, False), (0o440, False)):
        server.key_file.chmod(mode)
        caplog.clear()
        server_credentials(settings)
        assert (f"SMALTI_RPC_TLS_KEY: others can read or change {server.key_file}" in caplog.text) is reported
