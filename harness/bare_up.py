"""`smalti up` with services that only answer health checks: `python -m harness.bare_up [OPTIONS] [-- COMMAND...]`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from smalti.cli import run_application
from smalti.cli.up import run_system


def bare_command(name: str) -> tuple[str, ...]:
    """Returns the command line of a bare service."""
    return sys.executable, "-m", "harness.bare_service", name


def up(
    command: Annotated[list[str] | None, typer.Argument()] = None,
    model: Annotated[list[str] | None, typer.Option()] = None,
    data: Annotated[Path | None, typer.Option()] = None,
    ports: Annotated[str | None, typer.Option()] = None,
) -> None:
    """Runs `smalti up` with bare services; takes its options."""
    run_system(command or [], models=model or [], data=data, ports=ports, service_command=bare_command)


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(up)
    sys.exit(run_application(app, sys.argv[1:]))
