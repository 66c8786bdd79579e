"""The command `python -m faults.cluster`."""

import os
import shutil
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.measuring import describe_machine
from faults.cluster.phases import PHASES
from faults.cluster.running import Options, Runner
from faults.command import FAILED, call
from faults.deployed import report
from faults.deployed.trial import choose
from harness.chart import TOOLS
from smalti.errors import InvalidInputError
from smalti.network import PLAINTEXT


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit code: 1 if a phase fails, 2 if it cannot run."""
    return call(run, "deploy-test", arguments)


def run(
    phases: Annotated[str, typer.Option(help="Phases to run, separated by commas; all by default.")] = "",
    namespace: Annotated[str, typer.Option(help="Name of a namespace that is not there yet.")] = "smalti",
    helm: Annotated[str, typer.Option(help="Helm 3.")] = str(TOOLS / "helm3"),
    kubectl: Annotated[str, typer.Option(help="kubectl.")] = "kubectl",
    dns: Annotated[
        str, typer.Option(help="In a cluster without DNS: kubelet's --cluster-dns, served from here.")
    ] = "",
    next_tag: Annotated[str, typer.Option(help="Tag of the images that the code is upgraded to.")] = "",
    values: Annotated[
        list[Path] | None, typer.Option(help="Further file of values; may be repeated.")
    ] = None,
    folder: Annotated[Path | None, typer.Option(help="New folder for pictures, logs, and disks.")] = None,
    write: Annotated[Path | None, typer.Option(help="Page into which the results are written.")] = None,
    keep: Annotated[bool, typer.Option(help="Leave the installation as it is.")] = False,
) -> int:
    """Installs the chart in the cluster of KUBECONFIG, harms and upgrades it under load, and accounts for every job."""
    chosen = choose(PHASES, phases)
    for program, option in ((helm, "--helm"), (kubectl, "--kubectl")):
        if shutil.which(program) is None:
            raise InvalidInputError(option, f"{program} is not installed")
    # The chart's own servers, and pods of this cluster, which the test reaches as their neighbour.
    os.environ[PLAINTEXT] = "1"
    place = folder or Path(tempfile.mkdtemp(prefix="smalti-cluster-"))
    place.mkdir(parents=True, exist_ok=True)
    place.chmod(0o755)
    console = Console(stderr=True, highlight=False)

    def say(text: str) -> None:
        console.print(f"{datetime.now(UTC):%H:%M:%S} {text}", markup=False, soft_wrap=True)

    say(f"pictures and logs are in {place}")
    options = Options(
        place.resolve(), namespace, kubectl, helm, dns, next_tag, values=tuple(values or ()), keep=keep
    )
    runner = Runner(
        options, say, {"when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), **describe_machine()}
    )
    try:
        runner.run(chosen)
    finally:
        report.tell(runner.results, say, write, "cluster", "make deploy-test", runner.facts)
    return 0 if all(result.passed for result in runner.results) else FAILED
