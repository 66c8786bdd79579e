"""`smalti up`: the whole system on this machine."""

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from smalti.cli.extras import needs_extra
from smalti.entrance import signals
from smalti.errors import InvalidInputError, ServerStartError
from smalti.registry import library
from smalti.settings import data_folder

if TYPE_CHECKING:
    from smalti.up.servers import Server
    from smalti.up.supervisor import Supervisor
    from smalti.up.system import System

MODELS_SECONDS, MODELS_POLL_SECONDS = 30.0, 0.2
"""Time in which the gateway must list the models of the system, and the interval at which it is asked."""
MAX_WIDTH = 200
"""Columns of the table at most; it has fewer than 80 unless a name is very long."""
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
        list[str] | None,
        typer.Option(
            help="A name that `smalti models` lists, or a folder. Repeat it for several models; the first is used by "
            "default. [default: the shipped model]"
        ),
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

    run_system(command or [], models=model or [], data=data, ports=ports, service_command=service_command)


def run_system(
    command: list[str],
    *,
    models: Sequence[str],
    data: Path | None,
    ports: str | None,
    service_command: Callable[[str], Sequence[str]],
) -> None:
    """Runs the system until a signal arrives or the command ends.

    Args:
        command: run against the system; if it is empty, the system runs until a signal arrives.
        models: the names or folders of models, the default one first; empty for the shipped model.
        data: the folder for jobs, pictures and logs; None for the default.
        ports: the value of the option --ports.
        service_command: returns the command line that starts a service, given its name.

    Raises:
        typer.Exit: always, with the exit status.
        InvalidInputError: an argument or a setting is invalid; nothing was started.
    """
    from smalti.messages import ROUTES_SINCE, message_settings
    from smalti.up.command import find_program
    from smalti.up.plan import plan_workers
    from smalti.up.ports import read_ports, taken
    from smalti.up.supervisor import Supervisor
    from smalti.up.system import System, begin_logs, owned

    program = find_program(command[0]) + command[1:] if command else []
    workers = plan_workers(list(map(library.find, models)) or [library.find()])
    written = "SMALTI_MESSAGES_WRITE"
    if len(models) > 1 and written in os.environ and message_settings().write < ROUTES_SINCE:
        raise InvalidInputError(written, f"must be {ROUTES_SINCE} for several models; unset it")
    chosen = read_ports(ports, [worker.name for worker in workers])
    kept = (data or data_folder("data") / "up").absolute()
    # Standard output belongs to the command; our own messages go to standard error.
    console = Console(stderr=bool(program), highlight=False)
    # Checked before anything is created, so that a system that already runs is not disturbed.
    if problems := taken(chosen):
        _fail(problems)
    try:
        with owned(kept) as umask, signals.deferred() as stopping:
            begin_logs(kept)
            system = System(kept, chosen, workers, command=service_command)
            supervisor = Supervisor(system.groups, report=lambda line: _say(console, line), move=system.move)
            try:
                status = _serve(system, supervisor, stopping, program, console, umask)
            finally:
                _stop(supervisor, stopping, console)
    except ServerStartError as error:
        _fail([str(error)])
    raise typer.Exit(status)


def _serve(
    system: "System",
    supervisor: "Supervisor",
    stopping: signals.Stopping,
    program: list[str],
    console: Console,
    umask: int,
) -> int:
    """Starts the system, runs the command or waits for a signal, and returns the exit status."""
    began = time.monotonic()
    with console.status("Starting the system ..."):
        supervisor.begin()
        if not supervisor.wait_until_ready(lambda: stopping.requested):
            return stopping.exit_status if program else 0
        if len(system.models) > 1:
            _wait_for_models(system, stopping, console)
    seconds = time.monotonic() - began
    if not program:
        show(system, seconds, console)
        stopping.wait()
        return 0
    _say(console, f"the system is ready after {seconds:.1f} s: {system.gateway}")
    return _run(program, _addresses(system), umask)


def _wait_for_models(system: "System", stopping: signals.Stopping, console: Console) -> None:
    """Waits until the gateway lists all models, which it learns from their workers a moment after their start."""
    deadline = time.monotonic() + MODELS_SECONDS
    while (unknown := system.unknown_models()) and not stopping.requested:
        if time.monotonic() > deadline:
            _say(console, f"the gateway does not list {', '.join(unknown)} yet")
            return
        time.sleep(MODELS_POLL_SECONDS)


def _run(program: list[str], addresses: dict[str, str], umask: int) -> int:
    """Runs the command, to which all signals go meanwhile, and returns its exit status."""
    from smalti.up.command import hears_the_terminal, run_guarded

    command = run_guarded(program, addresses, umask=umask)

    def forward(number: int) -> None:
        if not (number == signal.SIGINT and hears_the_terminal()):
            command.send_signal(number)

    with signals.deferred(counted=()) as stopping, stopping.calling(forward):
        code = command.wait()
    return code if code >= 0 else 128 - code


def _addresses(system: "System") -> dict[str, str]:
    """Returns the variables by which a command finds the system; the last two are those of OpenAI's clients."""
    return {
        "SMALTI_SERVER": system.gateway,
        "OPENAI_BASE_URL": f"{system.web.url}/v1",
        # Any key will do, and the user's own is for somebody else.
        "OPENAI_API_KEY": "smalti",
    }


def _stop(supervisor: "Supervisor", stopping: signals.Stopping, console: Console) -> None:
    """Stops everything; another signal kills it."""
    thread = threading.Thread(target=supervisor.stop, name="stop")
    with (
        console.status("Stopping the system ..."),
        stopping.calling(lambda number: supervisor.kill(), earlier=False),
    ):
        thread.start()
        thread.join()


def show(system: "System", seconds: float, console: Console) -> None:
    """Prints the addresses of the system."""
    from smalti.up.ports import WEB
    from smalti.up.servers import HOST

    table = Table("", "address", "metrics", "memory", box=None, header_style="bold", pad_edge=False)
    table.columns[3].justify = "right"
    rows: list[tuple[str, str, str, Server]] = [
        (name, service.url, f"http://{HOST}:{system.ports[f'{name}-metrics']}/metrics", service)
        for name, service in {WEB: system.web, **system.services}.items()
    ]
    rows.append(("broker", f"{HOST}:{system.valkey.port}", "", system.valkey))
    rows.append(("store", f"http://{HOST}:{system.s3.port}", "", system.s3))
    total = 0
    for name, address, metrics, server in rows:
        memory = system.memory(server)
        total += memory
        table.add_row(name, address, metrics, _in_megabytes(memory))
    console.print(f"Open {system.web.url}", markup=False, style="bold")
    console.print(f"The system is ready after {seconds:.1f} s, and uses {_in_megabytes(total)} of memory.")
    # Not as wide as the terminal, which may break a line: an address must not be shortened.
    Console(file=console.file, width=MAX_WIDTH, highlight=False).print(table)
    if len(system.models) > 1:
        for model in system.models:
            names = [name for name, worker in system.workers.items() if model in worker.models]
            console.print(f"{model.name}: {', '.join(names)}", markup=False, soft_wrap=True)
    console.print(f"Data, keys and logs are in {system.data}.", markup=False, soft_wrap=True)
    console.print(
        f'Draw with: smalti generate --server {system.gateway} "a red balloon". Ctrl-C stops it all.',
        markup=False,
        soft_wrap=True,
    )


def _in_megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"


def _say(console: Console, line: str) -> None:
    console.print(f"smalti up: {' '.join(line.split())}", markup=False, soft_wrap=True)


def _fail(problems: list[str]) -> None:
    """Prints the problems, a line each, and ends the command."""
    for problem in problems:
        _say(Console(stderr=True, highlight=False), problem)
    raise typer.Exit(FAILED)
