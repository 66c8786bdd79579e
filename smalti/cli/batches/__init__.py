"""`smalti batch`."""

from smalti.cli.batches.commands import register

__all__ = ["register"]
