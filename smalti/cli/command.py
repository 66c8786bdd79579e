"""The `smalti` command, put together from its sub-commands.

Each sub-command is a module of this package with a function `register`. A `SmaltiError` or wrong usage prints one line
on standard error and ends with exit status 2; Ctrl-C ends with 130.
"""

import sys
import warnings
from collections.abc import Sequence

import typer
from rich.console import Console
from typer.exceptions import TyperException

from smalti import __version__
from smalti.cli import data, evaluate, generate, interrupts, models, train, up
from smalti.errors import SmaltiError, SmaltiWarning

__all__ = ["application", "main", "run", "run_application"]

USAGE_ERROR = 2
INTERRUPTED = 130


def application() -> typer.Typer:
    """Returns the command with all its sub-commands."""
    app = typer.Typer(
        help="Smalti: prompts to pictures, laid one tile at a time.",
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",  # "rich" would take "[default: ...]" in a help text for a tag and drop it.
    )

    @app.callback(invoke_without_command=True)
    def version(
        context: typer.Context,
        show: bool = typer.Option(False, "--version", help="Print the version and exit.", is_eager=True),
    ) -> None:
        if show:
            print(__version__)
            raise typer.Exit
        if context.invoked_subcommand is None:
            print(context.get_help())

    for command in (generate, up, models, data, train, evaluate):
        command.register(app)
    return app


def run(arguments: Sequence[str]) -> int:
    """Runs the command with arguments and returns its exit status."""
    return run_application(application(), arguments)


def run_application(app: typer.Typer, arguments: Sequence[str]) -> int:
    """Runs an application with arguments, turns errors and Ctrl-C into messages, and returns the exit status."""
    console = Console(stderr=True, highlight=False)

    def say(kind: str, message: object) -> None:
        # One line, however narrow the terminal: a program may read it.
        line = " ".join(str(message).split())
        console.print(f"smalti: {kind}{line}", markup=False, soft_wrap=True)

    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *rest: object, **more: object) -> None:
            if issubclass(category, SmaltiWarning):
                say("warning: ", message)
            else:
                shown(message, category, *rest, **more)  # type: ignore[arg-type]

        warnings.showwarning = show
        warnings.simplefilter("always", SmaltiWarning)
        try:
            with interrupts.recorded():
                status = app(list(arguments), prog_name="smalti", standalone_mode=False)
        except SmaltiError as error:
            say("", error)
            return USAGE_ERROR
        except TyperException as error:
            # A group without a sub-command has already printed its help; its message is empty.
            if message := error.format_message():
                say("", f"{message} Try `smalti --help`.")
            return error.exit_code
        except (KeyboardInterrupt, typer.Abort):
            status = INTERRUPTED
    if status == INTERRUPTED:
        say("", "interrupted; every file that was written is complete")
    return status if isinstance(status, int) else 0


def main() -> None:
    """Runs the command with the arguments of the process."""
    sys.exit(run(sys.argv[1:]))
