"""The `smalti` command."""

from smalti.cli.command import application, main, run, run_application

__all__ = ["application", "main", "run", "run_application"]
