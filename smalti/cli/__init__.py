"""The `smalti` command."""

from typing import TYPE_CHECKING, Any

from smalti.cli.entrance import main

if TYPE_CHECKING:
    from smalti.cli.command import application, run, run_application

__all__ = ["application", "main", "run", "run_application"]

# Hidden from type checkers, for which any attribute would exist otherwise.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Imports the command when it is first used: `main` must be quick."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from smalti.cli import command

        return getattr(command, name)
