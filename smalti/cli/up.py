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

from smalti.errors import InvalidInputError
from smalti.registry import library
from smalti.settings import data_folder

if TYPE_CHECKING:
    from smalti.up.supervisor import Supervisor
    from smalti.up.system import System

INTERRUPTED = 130
FAILED = 1
"""The exit status where a port or the folder is taken, or a process cannot be started."""


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("up")(up)


def up(
    command: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[-- COMMAND...]",
            help="Run this against the system, with SMALTI_SERVER set, then stop; its exit status is the result.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="A name that `smalti models` lists, or a folder. [default: the shipped one]"),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="The folder in which everything is kept: jobs, pictures, logs. [default: up, in yours]"
        ),
    ] = None,
    ports: Annotated[
        str | None,
        typer.Option(
            metavar="free|NAME=PORT,...",
            help="Other ports than usual: free ones throughout, or as in gateway=6000,s3=free.",
        ),
    ] = None,
) -> None:
    """Start the whole system on this machine: a broker, an object store, the four stages, and the gateway."""
    try:
        from smalti.up.services import service_command
    except ModuleNotFoundError as error:
        raise InvalidInputError("up", f"{error.name} is not installed; pip install 'smalti[up]'") from None

    run_system(command or [], model=model, data=data, ports=ports, service_command=service_command)


def run_system(
    command: list[str],
    *,
    model: str | None,
    data: Path | None,
    ports: str | None,
    service_command: Callable[[str], Sequence[str]],
) -> None:
    """Runs the system until it is told to stop, or until the command has ended.

    Args:
        command: run against the system; if it is empty, the system runs until a signal.
        model: a model's name or folder; the shipped one for None.
        data: the folder in which everything is kept; the user's own for None.
        ports: see the command's option.
        service_command: gives the command line that starts a service, by the service's name.

    Raises:
        typer.Exit: always; its code is the exit status.
    """
    from smalti.errors import ServerStartError
    from smalti.up.command import find_program
    from smalti.up.ports import read_ports, taken
    from smalti.up.supervisor import Supervisor
    from smalti.up.system import System, begin_logs, owned

    program = find_program(command[0]) + command[1:] if command else []
    chosen = read_ports(ports)
    folder = library.find(model)
    kept = (data or data_folder() / "up").absolute()
    # What a command prints is its own; the rest is said beside it.
    console = Console(stderr=bool(program), highlight=False)
    # Before anything is made: whoever is there already is not disturbed.
    if problems := taken(chosen):
        _fail(problems)
    try:
        with owned(kept), _signals() as told:
            begin_logs(kept)
            system = System(kept, chosen, folder.path.absolute(), command=service_command)
            supervisor = Supervisor(system.groups, lambda line: _say(console, line))
            try:
                status = _serve(system, supervisor, told, program, console)
            finally:
                _stop(supervisor, told, console)
    except ServerStartError as error:
        _fail([str(error)])
    raise typer.Exit(status)


class _Told:
    """What signals have said."""

    def __init__(self) -> None:
        self.to_end = threading.Event()
        self.again = threading.Event()
        self.command: subprocess.Popen[bytes] | None = None

    def hear(self, number: int, frame: FrameType | None) -> None:
        """Takes a signal: the first asks for the end, the next for a quick one."""
        from smalti.up.command import hears_the_terminal

        if self.to_end.is_set():
            self.again.set()
        self.to_end.set()
        if self.command is not None and not (number == signal.SIGINT and hears_the_terminal()):
            self.command.send_signal(number)


@contextmanager
def _signals() -> Iterator[_Told]:
    """Takes the signals that end the command, while the block runs."""
    told = _Told()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, told.hear) for number in numbers}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _serve(
    system: "System", supervisor: "Supervisor", told: _Told, program: list[str], console: Console
) -> int:
    """Starts the system and runs the command, or serves until the end; returns the exit status."""
    from smalti.up.command import run_guarded

    began = time.monotonic()
    with console.status("Starting the system ..."):
        supervisor.begin()
        if not supervisor.wait_until_ready(told.to_end):
            return INTERRUPTED if program else 0
    seconds = time.monotonic() - began
    if not program:
        _show(system, seconds, console)
        told.to_end.wait()
        return 0
    _say(console, f"the system is ready after {seconds:.1f} s: {system.gateway}")
    told.command = run_guarded(program, {"SMALTI_SERVER": system.gateway})
    code = told.command.wait()
    told.command = None
    return code if code >= 0 else 128 - code


def _stop(supervisor: "Supervisor", told: _Told, console: Console) -> None:
    """Stops everything; a further signal hurries it."""
    told.again.clear()
    stopping = threading.Thread(target=supervisor.stop, name="stop")
    with console.status("Stopping the system ..."):
        stopping.start()
        while stopping.is_alive():
            stopping.join(0.1)
            if told.again.is_set():
                supervisor.kill()


def _show(system: "System", seconds: float, console: Console) -> None:
    """Prints what listens where."""
    from smalti.up.servers import HOST

    table = Table("", "address", "metrics", box=None, header_style="bold", pad_edge=False)
    for name, service in system.services.items():
        table.add_row(name, service.url, f"http://{HOST}:{system.ports[f'{name}-metrics']}/metrics")
    table.add_row("broker", f"{HOST}:{system.valkey.port}")
    table.add_row("store", f"http://{HOST}:{system.s3.port}")
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
    """Says what is in the way, a line each, and ends the command."""
    for problem in problems:
        _say(Console(stderr=True, highlight=False), problem)
    raise typer.Exit(FAILED)
