"""`smalti migrate`: brings the gateway's database to the schema of this version, apart from the gateways."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from smalti.cli.extras import needs_extra
from smalti.entrance import signals
from smalti.errors import DatabaseUnavailableError, InvalidInputError

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from smalti.services.gateway.database.connection import Database
    from smalti.services.gateway.database.schema import Step

TO_DO: Final = 1
"""Exit status of `--check` if there is something to do."""
RETRY_SECONDS: Final = 1.0


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(migrate)


def migrate(
    check: Annotated[
        bool,
        typer.Option("--check", help="Print what would be done, and change nothing; status 1 if anything."),
    ] = False,
    to: Annotated[
        str, typer.Option(help="Stop at this schema, such as 0009.  [default: this version's]")
    ] = "",
    lock_timeout: Annotated[
        float,
        typer.Option(min=0.1, help="Seconds for which a step waits for a lock, and callers wait behind it."),
    ] = 2.0,
    statement_timeout: Annotated[
        float, typer.Option(min=0.0, help="Seconds that a statement may take; 0 for as long as it needs.")
    ] = 0.0,
    wait: Annotated[
        float,
        typer.Option(
            min=0.0, help="Seconds for which a step that finds no lock, or no server, is tried again."
        ),
    ] = 120.0,
) -> None:
    """Bring the database that `SMALTI_GATEWAY_DATABASE` names to the schema of this version, step by step.

    Gateways may run meanwhile, those of the last release too. Each step is one transaction: a step that fails, is
    interrupted or is killed leaves nothing, and the next run goes on from there. Two runs at once do each step once.
    """
    with _database() as database:
        state = database.examine(to, migrates=True)
        if to and state.revision is not None and state.revision > to:
            raise InvalidInputError(
                "--to",
                f"the database has schema {state.revision} already; there is no way back to {to}, and none is needed: "
                "older gateways use the newer schema",
            )
        if check:
            for step in state.pending:
                print(f"{step.revision} to do: {step.about}")
            print(_summary(state.found, state.revision, "to do" if state.pending else "nothing to do"))
            raise typer.Exit(TO_DO if state.pending else 0)
        _run(database, to=to, lock=lock_timeout, statement=statement_timeout, seconds=wait)
        state = database.examine(to)
        print(_summary(state.found, state.revision, "ready"))


def _summary(found: str, schema: str | None, what: str) -> str:
    return f"{found}, {'no tables yet' if schema is None else f'schema {schema}'}: {what}"


def _run(database: "Database", *, to: str, lock: float, statement: float, seconds: float) -> None:
    """Migrates; tries again what finds no lock or no server, until it has waited long enough at one step."""
    from smalti.services.gateway.database import connection, schema

    began = time.monotonic()
    told = ""

    def done(step: "Step", took: float) -> None:
        nonlocal began
        began = time.monotonic()
        print(f"{step.revision} done in {took:.1f} s: {step.about}", flush=True)

    running = _Running()
    limits = schema.Limits(
        lock=lock, statement=statement, begun=running.begun, ending=signals.check, done=done
    )
    with signals.deferred() as stopping, stopping.calling(running.interrupt):
        while True:
            try:
                database.migrate(limits, to)
                return
            except DatabaseUnavailableError as error:
                signals.check()
                cause = connection.describe(error.__cause__ or error)
                if "statement timeout" in cause or time.monotonic() - began + RETRY_SECONDS > seconds:
                    raise DatabaseUnavailableError(f"{cause}; the steps that were printed are done") from None
                if cause != told:
                    typer.echo(f"smalti: trying again for up to {seconds:g} s: {cause}", err=True)
                told = cause
                stopping.wait(RETRY_SECONDS)
                signals.check()
            finally:
                running.over()


class _Running:
    """The statement that runs, which a signal interrupts."""

    def __init__(self) -> None:
        self._driver: Any = None

    def begun(self, step: "Step", connection: "Connection") -> None:
        """Notes the connection of a step."""
        signals.check()
        self._driver = connection.connection.driver_connection

    def over(self) -> None:
        """Forgets it."""
        self._driver = None

    def interrupt(self, number: int) -> None:
        """Lets the statement that runs fail, if there is one."""
        if driver := self._driver:
            stop = driver.cancel if hasattr(driver, "cancel") else driver.interrupt
            stop()


@contextmanager
def _database() -> "Iterator[Database]":
    """Opens the database.

    Raises:
        InvalidInputError: it cannot be used as it is.
        DatabaseUnavailableError: it does not answer.
    """
    with signals.at_once(), needs_extra("gateway"):  # SQLAlchemy takes long to load.
        from smalti.service import failpoints
        from smalti.services.gateway.database import connection
        from smalti.services.gateway.database.opening import operators_database
        from smalti.services.gateway.settings import gateway_settings
    failpoints.arm()
    # Their lines are this command's own.
    for name in ("alembic", connection.__name__):
        logging.getLogger(name).setLevel(logging.ERROR)
    settings = gateway_settings()
    with operators_database(settings, settings.database_timeout) as database:
        yield database
