"""`smalti up` beside other users of the machine: its files are private, and no port answers without a key."""

import os
import socket
import stat
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest
import redis

from smalti.errors import ServerStartError
from smalti.up.servers import HOST, S3Server, ValkeyServer, exchange, free_port
from smalti.up.system import owned

PASSWORD = "0123456789abcdef"


def listening(pid: int) -> set[int]:
    """Returns the TCP ports on which a process listens."""
    return {
        each.laddr[1]
        for each in psutil.Process(pid).net_connections("tcp")
        if each.status == psutil.CONN_LISTEN and each.laddr
    }


@pytest.mark.server
def test_no_port_of_the_store_answers_without_a_key(tmp_path: Path) -> None:
    with S3Server(tmp_path) as store:
        ports = listening(store.pids[0])
        assert store.port in ports
        assert len(ports) > 8
        for port in ports - {store.port}:
            assert not answers_over_http(port), port
            assert not answers_over_grpc(port), port
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"http://{HOST}:{store.port}/{store.bucket}/ready", timeout=10)
        assert caught.value.code == 403
    for name in ("security.toml", "tls.key"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


def answers_over_http(port: int) -> bool:
    for path in ("/", "/buckets/smalti/?limit=3", "/dir/status", "/status"):
        try:
            urllib.request.urlopen(f"http://{HOST}:{port}{path}", timeout=5)
        except (OSError, ValueError, urllib.error.URLError):
            continue
        except Exception:  # An answer of gRPC is no HTTP/1.
            continue
        return True
    return False


def answers_over_grpc(port: int) -> bool:
    """Returns whether a server answers the beginning of HTTP/2 in plaintext with its settings."""
    with socket.create_connection((HOST, port), timeout=5) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
        try:
            answer = connection.recv(9)
        except OSError:
            return False
    return len(answer) == 9 and answer[3] == 4


@pytest.mark.server
def test_the_broker_needs_its_password(tmp_path: Path) -> None:
    with ValkeyServer(tmp_path, password=PASSWORD) as valkey:
        assert exchange(valkey.port, b"KEYS *\r\n", 7) == b"-NOAUTH"
        with redis.Redis.from_url(valkey.url) as ours:
            assert ours.ping()
        assert PASSWORD not in " ".join(psutil.Process(valkey.pids[0]).cmdline())
        assert stat.S_IMODE((tmp_path / "valkey.conf").stat().st_mode) == 0o600


def test_folder_that_exists_is_made_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o755)
    before = os.umask(0o022)
    try:
        with owned(data) as umask:
            assert umask == 0o022
            (data / "new").touch()
            (data / "folder").mkdir()
        after = os.umask(0o022)
    finally:
        os.umask(before)
    assert after == 0o022
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    assert stat.S_IMODE((data / "new").stat().st_mode) == 0o600
    assert stat.S_IMODE((data / "folder").stat().st_mode) == 0o700
    monkeypatch.setattr(os, "geteuid", lambda: data.stat().st_uid + 1)
    with pytest.raises(ServerStartError, match="belongs to another user"), owned(data):
        pass


def test_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    data = tmp_path / "file" / "data"
    with (
        pytest.raises(ServerStartError, match=rf"^{data} cannot be written \(Not a directory: .*--data$"),
        owned(data),
    ):
        pass


def test_a_free_port_is_given_once() -> None:
    ports = [free_port() for _ in range(500)]
    assert len(set(ports)) == len(ports)
