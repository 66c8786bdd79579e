"""`smalti up`: the whole system on this machine."""

import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from smalti.cli.extras import needs_extra
from smalti.errors import ServerStartError
from smalti.registry import library
from smalti.settings import data_folder

if TYPE_CHECKING:
    from smalti.up.supervisor import Supervisor
    from smalti.up.system import System

INTERRUPTED = 130
FAILED = 1
"""Exit status if a port or the data folder is in use, or a process cannot be started."""


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("up")(up)


def up(
    command: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[-- COMMAND...]",
            help="Run this command against the system, then stop; its exit status is the result.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="A name that `smalti models` lists, or a folder. [default: the shipped model]"),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder for jobs, pictures and logs. [default: smalti/up in your data folder]"),
    ] = None,
    ports: Annotated[
        str | None,
        typer.Option(
            metavar="free|NAME=PORT,...",
            help="Ports to use instead of the defaults: free for all, or for example gateway=6000,s3=free.",
        ),
    ] = None,
) -> None:
    """Start the whole system on this machine: broker, object store, five stages, gateway, and web service."""
    with needs_extra("up"):
        from smalti.up.services import service_command

    run_system(command or [], model=model, data=data, ports=ports, service_command=service_command)


def run_system(
    command: list[str],
    *,
    model: str | None,
    data: Path | None,
    ports: str | None,
    service_command: Callable[[str], Sequence[str]],
) -> None:
    """Runs the system until a signal arrives or the command ends.

    Args:
        command: run against the system; if it is empty, the system runs until a signal arrives.
        model: the name or folder of a model; None for the shipped model.
        data: the folder for jobs, pictures and logs; None for the default.
        ports: the value of the option --ports.
        service_command: returns the command line that starts a service, given its name.

    Raises:
        typer.Exit: always, with the exit status.
    """
    from smalti.up.command import find_program
    from smalti.up.ports import read_ports, taken
    from smalti.up.supervisor import Supervisor
    from smalti.up.system import System, begin_logs, owned

    program = find_program(command[0]) + command[1:] if command else []
    chosen = read_ports(ports)
    folder = library.find(model)
    kept = (data or data_folder() / "up").absolute()
    # Standard output belongs to the command; our own messages go to standard error.
    console = Console(stderr=bool(program), highlight=False)
    # Checked before anything is created, so that a system that already runs is not disturbed.
    if problems := taken(chosen):
        _fail(problems)
    try:
        with owned(kept) as umask, _signals() as stopping:
            begin_logs(kept)
            system = System(kept, chosen, folder.path.absolute(), command=service_command)
            supervisor = Supervisor(system.groups, report=lambda line: _say(console, line), move=system.move)
            try:
                stopping.umask = umask
                status = _serve(system, supervisor, stopping, program, console)
            finally:
                _stop(supervisor, stopping, console)
    except ServerStartError as error:
        _fail([str(error)])
    raise typer.Exit(status)


class _Stopping:
    """The requests of signals to stop."""

    def __init__(self) -> None:
        self.requested = threading.Event()
        self.urgent = threading.Event()
        self.command: subprocess.Popen[bytes] | None = None
        self.umask = -1
        """The mask of file modes for the command."""

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal: the first one stops the system, the next one kills it."""
        from smalti.up.command import hears_the_terminal

        if self.requested.is_set():
            self.urgent.set()
        self.requested.set()
        if self.command is not None and not (number == signal.SIGINT and hears_the_terminal()):
            self.command.send_signal(number)


@contextmanager
def _signals() -> Iterator[_Stopping]:
    """Handles the signals that end the command while the block runs."""
    stopping = _Stopping()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, stopping.handle) for number in numbers}
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _serve(
    system: "System", supervisor: "Supervisor", stopping: _Stopping, program: list[str], console: Console
) -> int:
    """Starts the system, runs the command or waits for a signal, and returns the exit status."""
    from smalti.up.command import run_guarded

    began = time.monotonic()
    with console.status("Starting the system ..."):
        supervisor.begin()
        if not supervisor.wait_until_ready(stopping.requested):
            return INTERRUPTED if program else 0
    seconds = time.monotonic() - began
    if not program:
        _show(system, seconds, console)
        stopping.requested.wait()
        return 0
    _say(console, f"the system is ready after {seconds:.1f} s: {system.gateway}")
    stopping.command = run_guarded(program, _addresses(system), umask=stopping.umask)
    code = stopping.command.wait()
    stopping.command = None
    return code if code >= 0 else 128 - code


def _addresses(system: "System") -> dict[str, str]:
    """Returns the variables by which a command finds the system; the last two are those of OpenAI's clients."""
    return {
        "SMALTI_SERVER": system.gateway,
        "OPENAI_BASE_URL": f"{system.web.url}/v1",
        # Any key will do, and the user's own is for somebody else.
        "OPENAI_API_KEY": "smalti",
    }


def _stop(supervisor: "Supervisor", stopping: _Stopping, console: Console) -> None:
    """Stops everything; another signal kills it."""
    stopping.urgent.clear()
    thread = threading.Thread(target=supervisor.stop, name="stop")
    with console.status("Stopping the system ..."):
        thread.start()
        while thread.is_alive():
            thread.join(0.1)
            if stopping.urgent.is_set():
                supervisor.kill()


def _show(system: "System", seconds: float, console: Console) -> None:
    """Prints the addresses of the system."""
    from smalti.up.ports import WEB
    from smalti.up.servers import HOST

    table = Table("", "address", "metrics", box=None, header_style="bold", pad_edge=False)
    for name, service in {WEB: system.web, **system.services}.items():
        table.add_row(name, service.url, f"http://{HOST}:{system.ports[f'{name}-metrics']}/metrics")
    table.add_row("broker", f"{HOST}:{system.valkey.port}")
    table.add_row("store", f"http://{HOST}:{system.s3.port}")
    console.print(f"Open {system.web.url}", markup=False, style="bold")
    console.print(f"The system is ready after {seconds:.1f} s.")
    console.print(table)
    console.print(f"Data, keys and logs are in {system.data}.", markup=False, soft_wrap=True)
    console.print(
        f'Draw with: smalti generate --server {system.gateway} "a red balloon". Ctrl-C stops it all.',
        markup=False,
        soft_wrap=True,
    )


def _say(console: Console, line: str) -> None:
    console.print(f"smalti up: {' '.join(line.split())}", markup=False, soft_wrap=True)


def _fail(problems: list[str]) -> None:
    """Prints the problems, a line each, and ends the command."""
    for problem in problems:
        _say(Console(stderr=True, highlight=False), problem)
    raise typer.Exit(FAILED)
