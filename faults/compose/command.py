"""The command `python -m faults.compose`."""

import os
import shutil
import tempfile
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.measuring import describe_machine
from faults.accounting import Account
from faults.command import FAILED, call
from faults.compose.phases import PHASES, ComposeTrial
from faults.compose.project import Project
from faults.deployed import report
from faults.deployed.models import Expected, shipped
from faults.deployed.programs import run as call_program
from faults.deployed.trial import FIRST, Accounts, Phase, PhaseResult, choose
from faults.tally import Tally
from harness.chart import TOOLS
from smalti.errors import InvalidInputError
from smalti.network import PLAINTEXT

UP: Phase[ComposeTrial] = Phase("up", "`docker compose up --wait`", "everything is healthy", lambda _: None)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit code: 1 if a phase fails, 2 if it cannot run."""
    return call(run, "compose-test", arguments)


def run(
    phases: Annotated[str, typer.Option(help="Phases to run, separated by commas; all by default.")] = "",
    project: Annotated[str, typer.Option(help="Name of the project.")] = "smalti-proof",
    broker: Annotated[str, typer.Option(help="rabbitmq or valkey.")] = "rabbitmq",
    compose: Annotated[str, typer.Option(help="Docker Compose 2.20 or newer.")] = str(
        TOOLS / "docker-compose"
    ),
    restart_engine: Annotated[
        str, typer.Option(help="Command that restarts the engine.")
    ] = "systemctl restart docker",
    next_tag: Annotated[str, typer.Option(help="Tag of the images that the code is upgraded to.")] = "",
    folder: Annotated[Path | None, typer.Option(help="New folder for pictures and secrets.")] = None,
    write: Annotated[Path | None, typer.Option(help="Page into which the results are written.")] = None,
    keep: Annotated[bool, typer.Option(help="Leave the containers as they are.")] = False,
) -> int:
    """Starts the Compose file on this machine's engine, harms it under load, and accounts for every job."""
    chosen = choose(PHASES, phases)
    for program, option in ((compose, "--compose"), ("docker", "PATH")):
        if shutil.which(program) is None:
            raise InvalidInputError(option, f"{program} is not installed")
    # The network of the containers, and published ports of this machine.
    os.environ[PLAINTEXT] = "1"
    place = (folder or Path(tempfile.mkdtemp(prefix="smalti-compose-"))).resolve()
    place.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True, highlight=False)

    def say(text: str) -> None:
        console.print(f"{datetime.now(UTC):%H:%M:%S} {text}", markup=False, soft_wrap=True)

    say(f"pictures and secrets are in {place}")
    version = call_program(["docker", "version", "--format", "{{.Server.Version}}"]).strip()
    facts = {
        "when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        **describe_machine(),
        "Docker": version,
        "Compose": call_program([compose, "version", "--short"]).strip(),
        "broker": broker,
    }
    started = Project(place, name=project, compose=[compose], setup=["--broker", broker])
    results: list[PhaseResult] = []
    try:
        with ExitStack() as stack:
            expected = Expected(shipped())
            stack.callback(expected.close)
            if not keep:
                stack.callback(started.down)
            seconds = started.up()
            say(f"up: healthy after {seconds:.0f} s")
            results.append(PhaseResult(UP, Tally(), (), (), seconds))
            system = started.system({FIRST: shipped()})
            accounts = Accounts(system, {shipped().revision: expected}, say)

            def trial_of(account: Account) -> ComposeTrial:
                return ComposeTrial(
                    system=system,
                    account=account,
                    folder=place,
                    next_tag=next_tag,
                    project=started,
                    restart_engine=restart_engine,
                )

            for each in chosen:
                results.append(accounts.run(each, trial_of))
    finally:
        report.tell(results, say, write, "compose", "make compose-test", facts)
    return 0 if all(result.passed for result in results) else FAILED
