"""Other programs take ports of `smalti up` after they were chosen."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from harness.bare_service import FOLDER
from harness.bare_up import bare_command
from harness.waiting import wait_until
from smalti.errors import ServerStartError
from smalti.registry.folder import ModelFolder
from smalti.up.plan import plan_workers
from smalti.up.ports import WEB, read_ports
from smalti.up.servers import HOST, S3Server, ValkeyServer
from smalti.up.supervisor import Supervisor
from smalti.up.system import System, begin_logs, owned

pytestmark = pytest.mark.server


class Thief:
    """Another program, which listens on ports as soon as they are free."""

    def __init__(self, sockets: ExitStack) -> None:
        self._sockets = sockets

    def take(self, *ports: int) -> None:
        for port in ports:
            wait_until(partial(self._takes, port), problem=f"port {port} is not free")

    def _takes(self, port: int) -> bool:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError:
            listener.close()
            return False
        listener.listen()
        self._sockets.enter_context(listener)
        return True


@pytest.fixture
def thief() -> Iterator[Thief]:
    with ExitStack() as sockets:
        yield Thief(sockets)


@pytest.fixture
def system(tmp_path: Path, tiny: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> Iterator[System]:
    """A system of services that only answer health checks, on free ports; not started."""
    monkeypatch.setenv(FOLDER, str(tmp_path))
    with owned(tmp_path / "data"):
        begin_logs(tmp_path / "data")
        yield System(tmp_path / "data", read_ports("free"), plan_workers([tiny]), command=bare_command)


def test_services_write_the_newest_messages_and_say_where_they_are(
    tmp_path: Path, tiny: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SMALTI_MESSAGES_WRITE", raising=False)
    ports = read_ports("decoder=6000")
    folder = tmp_path / "data"
    with owned(folder):
        decoder = System(folder, ports, plan_workers([tiny])).services["decoder"].environment
        monkeypatch.setenv("SMALTI_MESSAGES_WRITE", "2")
        chosen = System(folder, ports, plan_workers([tiny])).services["decoder"].environment
    assert decoder["SMALTI_MESSAGES_WRITE"] == "3"
    assert "SMALTI_MESSAGES_WRITE" not in chosen  # The user's holds.
    assert decoder["SMALTI_RPC_ADVERTISE"] == "127.0.0.1:6000"


class RobbedStore(S3Server):
    """A store that loses ports among its parts before its first start."""

    def __init__(self, folder: Path, thief: Thief) -> None:
        super().__init__(folder)
        self._thief = thief
        self.starts = 0

    def _run(self, *command: Any, **options: Any) -> Any:
        self.starts += 1
        if self.starts == 1:
            self._thief.take(self._ports["master.port"], self._ports["volume.port"])
        return super()._run(*command, **options)


def test_system_gets_ready_on_other_ports(system: System, thief: Thief, tmp_path: Path) -> None:
    lost = {"valkey", "s3", "encoder", "decoder", "ranker-metrics", "gateway", WEB}
    before = dict(system.ports)
    thief.take(*(before[name] for name in lost))
    said: list[str] = []
    supervisor = Supervisor(system.groups, report=said.append, move=system.move)
    supervisor.begin()
    try:
        assert supervisor.wait_until_ready(lambda: False)
        assert {name for name in before if system.ports[name] != before[name]} == lost
        assert all(server.answers() and not server.outdated for server in system.servers)
        for name in lost:
            assert any(
                line.startswith(f"{name} moves from port {before[name]}, which process ") for line in said
            )
        # A port that is lost while its server runs no more: those who know the old one start again.
        old = system.ports["decoder"]
        gateway = system.services["gateway"].pids
        system.services["decoder"].kill()
        thief.take(old)
        wait_until(lambda: system.services["decoder"].answers(), problem="the decoder stays away")
        wait_until(
            lambda: system.services["gateway"].answers() and system.services["gateway"].pids != gateway,
            problem="the gateway is not restarted",
        )
        assert system.ports["decoder"] != old
        assert not any(server.outdated for server in system.servers)
        assert not any("has died" in line for line in said if "decoder" not in line)
    finally:
        supervisor.stop()


def test_named_port_is_never_changed(thief: Thief) -> None:
    ports = read_ports("free")
    assert ports.free == set(ports)
    fixed = read_ports(f"gateway={ports['gateway']},web=free")
    assert fixed.free == {"web"}
    before = dict(fixed)
    thief.take(fixed["gateway"], fixed["web"])
    assert len(fixed.replace_taken(before)) == 1
    assert {name for name in before if fixed[name] != before[name]} == {"web"}


def test_store_takes_other_ports_for_its_parts(thief: Thief, tmp_path: Path) -> None:
    with RobbedStore(tmp_path, thief) as store:
        assert store.starts == 2


def test_server_on_a_free_port_moves_before_it_has_answered(thief: Thief) -> None:
    valkey = ValkeyServer()
    first = valkey.port
    thief.take(first)
    with valkey:
        port = valkey.port
        assert port != first
        # Its clients know this one.
        valkey.kill()
        thief.take(port)
        with pytest.raises(ServerStartError, match=f"port {port} of {HOST} is taken"):
            valkey.start()
