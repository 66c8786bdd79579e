"""TLS to the broker: the password is told only to a server with a trusted certificate for its name."""

import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydantic import SecretStr

from harness.certificates import make_identity
from harness.queue import HARMLESS_WARNINGS, task
from smalti.errors import BrokerUnavailableError, InvalidInputError
from smalti.queue import BrokerPublisher, BrokerSettings, celery_application

pytestmark = [pytest.mark.filterwarnings(each) for each in HARMLESS_WARNINGS]

PASSWORD = "topsecret"
URLS = {
    "valkey": f"rediss://:{PASSWORD}@127.0.0.1:%d/0",
    "rabbitmq": f"amqps://smalti:{PASSWORD}@127.0.0.1:%d/",
}


class Listener:
    """A TLS server that asks for a password as brokers do, and remembers what it hears."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.heard = b""
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.socket.getsockname()[1]
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.folder / "server.pem", self.folder / "server.key")
            with connection:
                try:
                    self._talk(context.wrap_socket(connection, server_side=True))
                except OSError:
                    continue  # The client refused the certificate.

    def _talk(self, connection: ssl.SSLSocket) -> None:
        connection.settimeout(3)
        self.heard += connection.recv(2000)
        if self.heard.endswith(b"AMQP\x00\x00\x09\x01"):
            # Connection.Start, version 0-9, without properties.
            start = struct.pack(">HHBBI", 10, 10, 0, 9, 0)
            start += struct.pack(">I5sI5s", 5, b"PLAIN", 5, b"en_US")
            connection.sendall(struct.pack(">BHI", 1, 0, len(start)) + start + b"\xce")
            self.heard += connection.recv(2000)


@contextmanager
def listening(folder: Path) -> Iterator[Listener]:
    listener = Listener(folder)
    try:
        yield listener
    finally:
        listener.socket.shutdown(socket.SHUT_RDWR)
        listener.socket.close()
        listener.thread.join()


def hears_password(listener: Listener, url: str, ca: Path | None) -> bool:
    """Returns whether a publisher tells its password."""
    listener.heard = b""
    publisher = BrokerPublisher(BrokerSettings(url=SecretStr(url % listener.port), ca=ca, timeout=3.0))
    try:
        with pytest.raises(BrokerUnavailableError):
            publisher.publish(task())
    finally:
        publisher.close()
    return PASSWORD.encode() in listener.heard


@pytest.mark.parametrize("broker", URLS)
def test_password_is_told_only_to_the_right_name(broker: str, tmp_path: Path) -> None:
    """A certificate of a trusted authority is not enough; renewed files are read for the next connection."""
    authority = make_identity(tmp_path, "authority")
    make_identity(tmp_path, "server", signed_by=authority, host="192.0.2.1")
    with listening(tmp_path) as listener:
        assert not hears_password(listener, URLS[broker], authority.certificate_file)
        make_identity(tmp_path, "server", signed_by=authority)
        assert hears_password(listener, URLS[broker], authority.certificate_file)
        # Without a file, the authorities of the system are trusted, and this one is not among them.
        assert not hears_password(listener, URLS[broker], None)


def test_given_authority_replaces_those_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = make_identity(tmp_path, "system")
    ours = make_identity(tmp_path, "ours")
    make_identity(tmp_path, "server", signed_by=system)
    monkeypatch.setenv("SSL_CERT_FILE", str(system.certificate_file))
    with listening(tmp_path) as listener:
        for url in URLS.values():
            assert hears_password(listener, url, None)
            assert not hears_password(listener, url, ours.certificate_file)


def test_plaintext_to_another_machine_must_be_enabled(monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("redis://broker.example:6379/0", "amqp://user:topsecret@broker.example//"):
        settings = BrokerSettings(url=SecretStr(url))
        monkeypatch.delenv("SMALTI_PLAINTEXT", raising=False)
        with pytest.raises(InvalidInputError, match=r"^SMALTI_BROKER_URL: is not (redis|amqp)s://") as caught:
            celery_application(settings)
        assert "SMALTI_PLAINTEXT=1" in str(caught.value)
        assert PASSWORD not in str(caught.value)
        monkeypatch.setenv("SMALTI_PLAINTEXT", "1")
        celery_application(settings)


def test_unusable_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "noise").write_text("noise")
    url = SecretStr("rediss://broker.example/0")
    with pytest.raises(InvalidInputError, match=r"^SMALTI_BROKER_CA: .*absent cannot be used: No such"):
        celery_application(BrokerSettings(url=url, ca=tmp_path / "absent"))
    noise = tmp_path / "noise"
    with pytest.raises(
        InvalidInputError, match=r"^SMALTI_BROKER_CERTIFICATE: .*noise with .*noise cannot be"
    ):
        celery_application(BrokerSettings(url=url, certificate=noise, key=noise))
    with pytest.raises(
        InvalidInputError, match=r"^SMALTI_BROKER_CERTIFICATE: set SMALTI_BROKER_CERTIFICATE and"
    ):
        celery_application(BrokerSettings(url=url, certificate=noise))
