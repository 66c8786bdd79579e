"""`smalti doctor`: what is wrong on this machine, and what to do about it."""

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from smalti import __version__
from smalti.doctor import Finding, State, examine_machine, examine_services
from smalti.entrance import signals

__all__ = ["register"]

CANNOT_WORK = 2
STYLES = {State.GOOD: "green", State.NOTE: "yellow", State.WAITS: "yellow", State.FAILS: "bold red"}


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("doctor")(doctor)


def doctor(
    services: Annotated[
        bool,
        typer.Option(
            "--services",
            help="Also ask the broker, the store, the database and the gateway at their default addresses. "
            "[default: those that a setting names]",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what is wrong on this machine: variables, folders, model, device, and the servers that settings name."""
    found: list[Finding] = []
    console = Console(highlight=False)
    waiting = Console(stderr=True).status("Asking ...")
    with waiting, signals.at_once():  # Nothing is left half-done.
        for finding in (*examine_machine(), *examine_services(everything=services)):
            found.append(finding)
    fails = sum(each.state is State.FAILS for each in found)
    if as_json:
        findings = [{"subject": each.subject, "state": each.state, "text": each.text} for each in found]
        print(json.dumps({"version": __version__, "works": not fails, "findings": findings}, indent=2))
    else:
        for each in found:
            line = Text.assemble((f"{each.state:<6}", STYLES[each.state]), f" {each.subject}: {each.text}")
            console.print(line, soft_wrap=True)
        console.print(
            f"{fails} of {len(found)} things cannot work" if fails else "Everything that was asked can work."
        )
    if fails:
        raise typer.Exit(CANNOT_WORK)
