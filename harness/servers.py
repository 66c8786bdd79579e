"""Real servers on free ports of 127.0.0.1: those of `smalti up`, RabbitMQ and PostgreSQL."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import psutil
import psycopg
from psycopg import sql

from smalti.errors import ServerStartError
from smalti.up.servers import HOST, S3Server, Server, ValkeyServer, exchange, free_port

__all__ = [
    "HOST",
    "PostgresServer",
    "RabbitMQServer",
    "S3Server",
    "Server",
    "ValkeyServer",
    "exchange",
    "free_port",
]


MEMORY = "1GB"
"""Memory of RabbitMQ at which it raises its alarm."""


class RabbitMQServer(Server):
    """RabbitMQ from the Debian package `rabbitmq-server`, without systemd."""

    name = "rabbitmq"
    start_seconds = 240.0
    program: ClassVar[Path] = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")

    def __init__(self, folder: Path | None = None, port: int | None = None) -> None:
        """Creates the server; see `Server`."""
        super().__init__(folder, port)
        self._name_port, self._node_port = free_port(), free_port()

    @classmethod
    def installed(cls) -> bool:
        """Returns whether RabbitMQ is installed."""
        return cls.program.exists()

    @property
    def url(self) -> str:
        """The URL of the broker."""
        return f"amqp://guest:guest@{HOST}:{self.port}//"

    @contextmanager
    def alarm(self) -> Iterator[None]:
        """Raises the memory alarm while the block runs: the broker then takes nothing from publishers."""
        self.control("set_vm_memory_high_watermark", "absolute", "1")
        try:
            yield
        finally:
            self.control("set_vm_memory_high_watermark", "absolute", MEMORY)

    def control(self, *arguments: str) -> None:
        """Runs rabbitmqctl; raises `ServerStartError` if it fails."""
        environment = {**os.environ, **self._names, "HOME": str(self.folder)}
        command = [str(self.program.with_name("rabbitmqctl")), *arguments]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=240, check=False
        )
        if done.returncode:
            raise ServerStartError(f"rabbitmqctl {arguments[0]} failed: {done.stderr or done.stdout}")

    @property
    def _names(self) -> dict[str, str]:
        return {
            "ERL_EPMD_PORT": str(self._name_port),
            "ERL_EPMD_ADDRESS": HOST,
            "RABBITMQ_NODENAME": f"smalti-{self.port}@localhost",
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        }

    def _launch(self) -> None:
        if not self.installed():
            raise ServerStartError("RabbitMQ is not installed; apt-get install rabbitmq-server")
        configuration = self.folder / "rabbitmq.conf"
        configuration.write_text(
            f"listeners.tcp.1 = {HOST}:{self.port}\n"
            "log.console = true\nlog.file = false\n"
            # Low limits, since tests share the disk and memory of the machine.
            f"disk_free_limit.absolute = 10MB\nvm_memory_high_watermark.absolute = {MEMORY}\n"
        )
        (self.folder / "plugins").write_text("[].\n")
        # Our own epmd in the foreground: the one that Erlang starts would be left behind.
        self._run("epmd", "-port", str(self._name_port), "-address", HOST)
        self._run(
            self.program,
            environment={
                **self._names,
                "HOME": str(self.folder),
                "RABBITMQ_CONFIG_FILE": str(configuration),
                "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.folder / "advanced.config"),
                "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
                "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
                "RABBITMQ_LOG_BASE": str(self.folder),
                "RABBITMQ_GENERATED_CONFIG_DIR": str(self.folder / "generated"),
                "RABBITMQ_PID_FILE": str(self.folder / "pid"),
                "RABBITMQ_DIST_PORT": str(self._node_port),
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-start_epmd false "
                "-kernel inet_dist_use_interface {127,0,0,1}",
                # Makes the script exec the server instead of staying its parent.
                "RUNNING_UNDER_SYSTEMD": "true",
            },
        )

    def _answers(self) -> bool:
        from kombu.connection import Connection

        # Until it is ready, it accepts connections and closes them.
        if exchange(self.port, b"AMQP\x00\x00\x09\x01", 1) != b"\x01":
            return False
        with Connection(self.url, connect_timeout=5) as connection:
            connection.default_channel.queue_declare("", exclusive=True, auto_delete=True)
        return True


class PostgresServer(Server):
    """PostgreSQL from the Debian package `postgresql`; runs as another user than root, which it refuses."""

    name = "postgres"
    stop_signal = signal.SIGINT  # SIGTERM would wait for clients to disconnect.
    user = "postgres"
    database = "postgres"

    @classmethod
    def programs(cls) -> Path | None:
        """Returns the folder of the newest version's programs; None if it is not installed."""
        folders = Path("/usr/lib/postgresql").glob("*/bin")
        return max(folders, key=lambda folder: int(folder.parent.name), default=None)

    @property
    def url(self) -> str:
        """The URL of the database."""
        return f"postgresql://{self.user}@{HOST}:{self.port}/{self.database}"

    def _launch(self) -> None:
        programs = self.programs()
        if programs is None:
            raise ServerStartError("PostgreSQL is not installed; apt-get install postgresql")
        user = self.user if os.geteuid() == 0 else ""
        if user:
            shutil.chown(self.folder, user)
        data = self.folder / "data"
        if not data.exists():
            options = ("-D", data, "-U", self.user, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
            initdb = self._run(programs / "initdb", *options, user=user)
            self._processes.remove(initdb)
            if initdb.wait(self.start_seconds) != 0:
                raise ServerStartError(f"{self.name} cannot create its data folder: {self.log_end()}")
        self._run(
            programs / "postgres",
            *("-D", data, "-p", str(self.port), "-h", HOST, "-k", self.folder),
            user=user,
        )

    @contextmanager
    def new_database(self, name: str = "made") -> Iterator[str]:
        """Yields the URL of an empty database, which is dropped after the block."""
        with psycopg.connect(self.url, autocommit=True) as owner:
            made, dropped = sql.SQL("CREATE DATABASE {}"), sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)")
            owner.execute(dropped.format(sql.Identifier(name)))
            owner.execute(made.format(sql.Identifier(name)))
            try:
                yield f"{self.url.rpartition('/')[0]}/{name}"
            finally:
                owner.execute(dropped.format(sql.Identifier(name)))

    def pause_sessions(self) -> None:
        """Suspends the server with the processes of its connections, as a frozen disk or host would."""
        for process in self._everything():
            process.suspend()

    def resume_sessions(self) -> None:
        """Resumes what `pause_sessions` has suspended."""
        for process in reversed(self._everything()):
            process.resume()

    def _everything(self) -> list[psutil.Process]:
        """Returns the server's process, then those of its connections and tasks."""
        server = psutil.Process(self.pids[-1])
        return [server, *server.children(recursive=True)]

    def _answers(self) -> bool:
        programs = self.programs()
        assert programs is not None
        options = ["-h", HOST, "-p", str(self.port), "-U", self.user, "-d", self.database, "-c", "select 1"]
        done = subprocess.run([programs / "psql", *options], capture_output=True, timeout=5, check=False)
        return done.returncode == 0
