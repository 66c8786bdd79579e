"""The command `python -m faults`."""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from faults import report
from faults.matrix import Row
from faults.rows import ROWS
from faults.running import Runner
from smalti.errors import InvalidInputError, SmaltiError

FAILED, USAGE_ERROR = 1, 2


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit code: 1 if a row fails, 2 if it cannot run."""
    return call(run, "faults", arguments)


def call(command: Callable[..., int], name: str, arguments: list[str] | None) -> int:
    """Calls a command with its options; returns its exit code, or 2 with one line of the name and what is wrong."""
    console = Console(stderr=True, highlight=False)
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(command)
    try:
        return int(app(arguments, standalone_mode=False) or 0)
    except (SmaltiError, typer.TyperException) as error:
        console.print(f"{name}: {' '.join(str(error).split())}", markup=False, soft_wrap=True)
        return USAGE_ERROR
    except KeyboardInterrupt:
        return 130


def run(
    rows: Annotated[str, typer.Option(help="Rows to run, separated by commas; all by default.")] = "",
    broker: Annotated[str, typer.Option(help="valkey or rabbitmq.")] = "valkey",
    database: Annotated[str, typer.Option(help="sqlite or postgres.")] = "sqlite",
    gateways: Annotated[int, typer.Option(help="Number of gateways; 2 need postgres.", min=1, max=2)] = 1,
    jobs: Annotated[int, typer.Option(help="Number of jobs of a load.", min=4)] = 24,
    burst: Annotated[int, typer.Option(help="Number of jobs that are submitted at once.", min=100)] = 10_000,
    folder: Annotated[Path | None, typer.Option(help="New folder for data and logs.")] = None,
    write: Annotated[Path | None, typer.Option(help="Page into which the results are written.")] = None,
) -> int:
    """Runs the fault matrix against real processes, and accounts for every job."""
    for value, allowed, option in (
        (broker, ("valkey", "rabbitmq"), "--broker"),
        (database, ("sqlite", "postgres"), "--database"),
    ):
        if value not in allowed:
            raise InvalidInputError(option, f"{value!r} must be one of {', '.join(allowed)}")
    if gateways > 1 and database != "postgres":
        raise InvalidInputError("--gateways", "several gateways need --database postgres")
    chosen = choose(rows)
    console = Console(stderr=True, highlight=False)
    place = folder or Path(tempfile.mkdtemp(prefix="smalti-faults-"))
    runner = Runner(
        place,
        broker=broker,
        database=database,
        gateways=gateways,
        jobs=jobs,
        burst=burst,
        say=lambda text: console.print(text, markup=False, soft_wrap=True),
    )
    try:
        results = runner.run(chosen)
    finally:
        runner.close()
    facts = report.facts(broker, database, gateways)
    report.show(results, facts)
    if write:
        name = f"{broker} {database}" + f" {gateways} gateways" * (gateways > 1)
        report.write(write, name, results, facts)
    sys.stdout.flush()
    return 0 if all(result.passed for result in results) else FAILED


def choose(names: str) -> list[Row]:
    """Returns rows by name, where `8` includes `8 signed`; raises `InvalidInputError` for an unknown name."""
    wanted = {name.strip() for name in names.split(",") if name.strip()}
    known = {name: row for name, row in ROWS.items() if {name, name.partition(" ")[0]} & wanted}
    for name in wanted:
        if not any(name in (each, each.partition(" ")[0]) for each in known):
            raise InvalidInputError("--rows", f"{name!r} must be one of {', '.join(ROWS)}")
    return list((known if wanted else ROWS).values())
