"""Connections to other machines: no protocol speaks plaintext unless that is allowed."""

import socket
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError
from sqlalchemy.engine import make_url

from smalti.errors import InvalidInputError
from smalti.network import WatchedFiles, address_of, cannot_listen, is_this_machine
from smalti.rpc.settings import RpcSettings
from smalti.services.gateway.database.encryption import with_tls
from smalti.services.web.service import check_certificate
from smalti.services.web.settings import WebSettings
from smalti.storage import open_store
from smalti.storage.settings import StoreSettings
from smalti.telemetry import tracing
from smalti.telemetry.settings import MetricsSettings


def test_this_machine() -> None:
    assert all(map(is_this_machine, ("localhost", "127.0.0.1", "127.8.0.1", "[::1]", "::1", "/run/socket")))
    others = ("", "0.0.0.0", "10.0.0.1", "localhost.evil.example", "127.evil.example", "[::]")
    assert not any(map(is_this_machine, others))


def test_address_has_brackets_for_ipv6_alone() -> None:
    assert address_of("::1", 80) == "[::1]:80"
    assert address_of("127.0.0.1", 80) == "127.0.0.1:80"


@pytest.mark.parametrize("kind", [RpcSettings, MetricsSettings, WebSettings])
@pytest.mark.parametrize(("host", "plain"), [("[::1]", "::1"), ("::1", "::1"), ("localhost", "localhost")])
def test_ipv6_is_taken_in_both_forms(
    kind: type[RpcSettings | MetricsSettings | WebSettings], host: str, plain: str
) -> None:
    assert kind(host=host).host == plain
    for wrong in ("127.0.0.1:80", "[::1]:80", "[localhost]", "::1::2"):
        with pytest.raises(ValidationError):
            kind(host=wrong)


def test_setting_that_is_the_cause_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        error = cannot_listen("SMALTI_RPC_", "127.0.0.1", taken.getsockname()[1], field="HEALTH_PORT")
        assert error.field == "SMALTI_RPC_HEALTH_PORT"
    for host in ("192.0.2.1", "nowhere.invalid", "2001:db8::1"):
        assert cannot_listen("SMALTI_RPC_", host, 0).field == "SMALTI_RPC_HOST"


def test_changed_files(tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    file.write_text("1")
    files = WatchedFiles([file])
    assert not files.changed()
    file.unlink()
    assert not files.changed()
    file.write_text("22")
    assert files.changed()
    assert not files.changed()


@pytest.mark.parametrize(
    ("changes", "variable"),
    [
        ({"url": "s3+http://key:secret@store.example/bucket"}, "SMALTI_STORE_URL"),
        (
            {"url": "s3+http://key:secret@127.0.0.1:1/bucket", "public_url": "http://store.example"},
            "SMALTI_STORE_PUBLIC_URL",
        ),
    ],
)
def test_store(changes: dict[str, str], variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = StoreSettings(**{**changes, "url": SecretStr(changes["url"])})  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match=rf"^{variable}: is not (s3\+)?https://, so others") as caught:
        open_store(settings)
    assert "secret" not in str(caught.value)
    monkeypatch.setenv("SMALTI_PLAINTEXT", "1")
    open_store(settings)


def test_authority_of_the_store_is_read_at_the_start(tmp_path: Path) -> None:
    url = SecretStr("s3+https://key:secret@store.example/bucket")
    with pytest.raises(InvalidInputError, match=r"^SMALTI_STORE_CA: .*absent cannot be used: No such"):
        open_store(StoreSettings(url=url, ca=tmp_path / "absent"))


@pytest.mark.parametrize(
    ("address", "query"),
    [
        ("postgresql://u@127.0.0.1/d", {}),
        ("postgresql://u@/d?host=/run/postgresql", {"host": "/run/postgresql"}),
        ("postgresql://u@db.example/d", {"sslmode": "verify-full", "sslrootcert": "system"}),
        (
            "postgresql://u@db.example/d?sslrootcert=ca.pem",
            {"sslmode": "verify-full", "sslrootcert": "ca.pem"},
        ),
        (
            "postgresql://u@/d?host=127.0.0.1:1&host=db.example:2",
            {"host": ("127.0.0.1:1", "db.example:2"), "sslmode": "verify-full", "sslrootcert": "system"},
        ),
    ],
)
def test_database(address: str, query: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("PGHOST", "PGHOSTADDR", "PGSSLMODE", "PGSSLROOTCERT"):
        monkeypatch.delenv(variable, raising=False)
    assert with_tls(make_url(address)).query == query
    monkeypatch.setenv("SMALTI_PLAINTEXT", "1")
    assert with_tls(make_url(address)) == make_url(address)


@pytest.mark.parametrize("mode", ["disable", "prefer", "require", "verify-ca"])
def test_weaker_mode_of_the_database_is_refused(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = make_url(f"postgresql://u:secret@db.example/d?sslmode={mode}")
    with pytest.raises(InvalidInputError, match=rf"^SMALTI_GATEWAY_DATABASE: has sslmode={mode}") as caught:
        with_tls(url)
    assert "u:secret" not in str(caught.value)
    monkeypatch.setenv("SMALTI_PLAINTEXT", "1")
    assert with_tls(url) == url


@pytest.mark.parametrize(
    ("endpoint", "insecure", "refused"),
    [
        ("http://collector.example:4317", None, True),
        ("collector.example:4317", "true", True),
        ("collector.example:4317", None, False),
        ("https://collector.example:4317", "true", False),
        ("http://127.0.0.1:4317", None, False),
    ],
)
def test_traces(endpoint: str, insecure: str | None, refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_INSECURE", raising=False)
    if insecure:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_INSECURE", insecure)
    if refused:
        with pytest.raises(InvalidInputError, match=r"^OTEL_EXPORTER_OTLP_ENDPOINT: is not https://"):
            tracing.start("test")
        monkeypatch.setenv("SMALTI_PLAINTEXT", "1")
    started = tracing.start("test")
    assert started
    started.close()


def test_web_service(monkeypatch: pytest.MonkeyPatch) -> None:
    check_certificate(WebSettings())
    opened = WebSettings(host="0.0.0.0", open=True)
    with pytest.raises(InvalidInputError, match=r"^SMALTI_WEB_TLS_CERTIFICATE: is not set, so others"):
        check_certificate(opened)
    monkeypatch.setenv("SMALTI_PLAINTEXT", "1")
    check_certificate(opened)
