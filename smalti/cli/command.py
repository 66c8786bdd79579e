"""The `smalti` command, put together from its sub-commands.

Each sub-command is a module of this package with a function `register`. A `SmaltiError`, wrong usage, or a stream that
cannot be written prints one line on standard error and ends with exit status 2; Ctrl-C ends with 130.
"""

import contextlib
import errno
import sys
import warnings
from collections.abc import Sequence

import typer
from rich.console import Console
from typer.exceptions import TyperException

from smalti import __version__
from smalti.cli import batches, data, evaluate, models, train, up
from smalti.cli.drawing import generate
from smalti.cli.operations import compile, doctor, keys, migrate, queue, revisions, tenants
from smalti.entrance import signals, streams
from smalti.errors import SmaltiError, SmaltiWarning
from smalti.foreign_text import check_text, printable

__all__ = ["application", "run", "run_application", "run_process"]

USAGE_ERROR = 2
TYPER_INTERRUPTED = 130
"""What Typer makes of KeyboardInterrupt, whichever signal it stands for."""
NOT_READ = 1
"""Exit status if the reader of the output has gone, as rich has it."""


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

    for command in (
        *(generate, batches, up, models, compile, doctor, migrate, keys, tenants, revisions, queue),
        *(data, train, evaluate),
    ):
        command.register(app)
    return app


def run(arguments: Sequence[str]) -> int:
    """Runs the command with arguments and returns its exit status."""
    return run_application(application(), arguments)


def run_process(arguments: Sequence[str]) -> int:
    """Runs the command as this process, which must have begun; returns its exit status."""
    status = run(arguments)
    try:
        sys.stdout.flush()
    except OSError as error:
        return _lost(error)
    return status


def run_application(app: typer.Typer, arguments: Sequence[str]) -> int:
    """Runs an application with arguments, turns errors and Ctrl-C into messages, and returns the exit status."""
    with warnings.catch_warnings(), signals.deferred() as stopping:
        shown = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *rest: object, **more: object) -> None:
            if issubclass(category, SmaltiWarning):
                say("warning: ", message)
            else:
                shown(message, category, *rest, **more)  # type: ignore[arg-type]

        warnings.showwarning = show
        warnings.simplefilter("always", SmaltiWarning)
        try:
            status = app(list(arguments), prog_name="smalti", standalone_mode=False)
        except SmaltiError as error:
            say("", error)
            return stopping.exit_status if stopping.requested else USAGE_ERROR
        except TyperException as error:
            # A group without a sub-command has already printed its help; its message is empty.
            if message := error.format_message():
                say("", f"{message} Try `smalti --help`.")
            return error.exit_code
        except UnicodeError:
            # Names of files may have any bytes; all other arguments are texts.
            wrong = [argument for argument in arguments if not _is_text(argument)]
            if not wrong:
                raise
            say("", f"the argument {printable(wrong[0])} is not valid UTF-8")
            return USAGE_ERROR
        except OSError as error:
            if error.filename is None and error.errno not in streams.LOST:
                raise
            return _lost(error)
        except typer.Abort as error:
            # Typer takes the early end of any file for the end of a terminal's input, which no command reads.
            raise error.__cause__ or error from None
        except KeyboardInterrupt:
            status = stopping.exit_status
        if stopping.requested and status in (stopping.exit_status, TYPER_INTERRUPTED):
            status = stopping.exit_status
            say("", "interrupted; every file that was written is complete")
    return status if isinstance(status, int) else 0


def say(kind: str, message: object) -> None:
    """Prints one line on standard error, however narrow the terminal: a program may read it."""
    line = printable(" ".join(str(message).split()))
    with contextlib.suppress(OSError):
        Console(stderr=True, highlight=False).print(f"smalti: {kind}{line}", markup=False, soft_wrap=True)


def _lost(error: OSError) -> int:
    """Says what could not be written; returns the exit status."""
    if error.filename is not None:
        say("", f"{error.filename}: {error.strerror}")
        return USAGE_ERROR
    streams.discard_output()
    if error.errno == errno.EPIPE:
        return NOT_READ
    say("", f"the output cannot be written ({error.strerror})")
    return USAGE_ERROR


def _is_text(argument: str) -> bool:
    try:
        check_text(argument, "argument")
    except SmaltiError:
        return False
    return True
