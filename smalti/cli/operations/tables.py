"""Printing tables."""

from typing import Final

from rich.console import Console
from rich.table import Table

MAX_WIDTH: Final = 10_000
"""Width of a table that goes into a file, or to another program."""


def print_table(table: Table) -> None:
    """Prints a table to standard output without cutting a cell: in a terminal its lines wrap, elsewhere none does."""
    for column in table.columns:
        column.overflow = "fold"
    is_terminal = Console().is_terminal
    Console(width=None if is_terminal else MAX_WIDTH, highlight=is_terminal).print(table)
