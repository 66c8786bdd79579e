"""Servers as child processes: they keep their data and are never left behind."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from harness.servers import HOST, PostgresServer, ValkeyServer
from smalti.errors import ServerStartError

pytestmark = pytest.mark.server

STARTER = """
import os, signal
from harness.servers import ValkeyServer
server = ValkeyServer().start()
server.pause()
print(server._processes[0].pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def query(server: PostgresServer, statement: str) -> str:
    programs = server.programs()
    assert programs is not None
    done = subprocess.run(
        [programs / "psql", server.url, "-tAc", statement],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.strip()


def runs(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"


def test_server_ends_with_the_process_that_started_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STARTER], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == -9, done.stderr
    pid = int(done.stdout)
    deadline = time.monotonic() + 30
    while runs(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_server_outlives_the_thread_that_started_it() -> None:
    server = ValkeyServer()
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    with redis.Redis(HOST, server.port) as client:
        assert client.ping()
    folder = server.folder
    server.close()
    assert not server.running
    assert not folder.exists()


def test_data_survive_a_kill(tmp_path: Path) -> None:
    with ValkeyServer(tmp_path / "valkey") as server, redis.Redis(HOST, server.port) as client:
        client.set("a", "b")
        port = server.port
        server.kill()
        assert not server.running
        server.start()
        assert server.port == port
        assert client.get("a") == b"b"
    assert tmp_path.joinpath("valkey").is_dir()  # A folder that was passed in is not removed.


def test_paused_server_does_not_answer_until_it_is_resumed(valkey: ValkeyServer) -> None:
    with redis.Redis(HOST, valkey.port, socket_timeout=0.3, retry=Retry(NoBackoff(), 0)) as client:
        assert client.ping()
        valkey.pause()
        try:
            with pytest.raises(redis.TimeoutError):
                client.ping()
            assert valkey.running
        finally:
            valkey.resume()
    with redis.Redis(HOST, valkey.port) as client:
        assert client.ping()


def test_database_keeps_what_was_committed(postgres: PostgresServer) -> None:
    query(postgres, "create table if not exists kept (value int)")
    query(postgres, "insert into kept values (7)")
    postgres.kill()
    postgres.start()
    assert query(postgres, "select max(value) from kept") == "7"


def test_server_that_cannot_start_reports_why(valkey: ValkeyServer, tmp_path: Path) -> None:
    with pytest.raises(ServerStartError, match=f"port {valkey.port} of 127.0.0.1 is taken"):
        ValkeyServer(tmp_path, valkey.port).start()
    (tmp_path / "appendonlydir").write_text("not a folder")
    with pytest.raises(ServerStartError, match=r"valkey ended: .*appendonlydir"):
        ValkeyServer(tmp_path).start()
