"""How a command ends."""

import pytest
import typer

from smalti.cli import run_application


def test_file_that_ends_early_is_not_taken_for_an_interrupt() -> None:
    app = typer.Typer()

    @app.command()
    def read() -> None:
        raise EOFError("the file ended early")

    with pytest.raises(EOFError, match="the file ended early"):
        run_application(app, [])
