"""Printing tables."""

from collections.abc import Iterable, Sequence
from typing import Final

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

MAX_WIDTH: Final = 10_000
"""Width of a table that goes into a file, or to another program."""


def print_table(columns: Sequence[str | Column], rows: Iterable[Iterable[str]]) -> None:
    """Prints a table to standard output without cutting a cell: in a terminal its lines wrap, elsewhere none does."""
    table = Table(*columns, box=None, header_style="bold")
    for row in rows:
        table.add_row(*map(Text, row))
    for column in table.columns:
        column.overflow = "fold"
    is_terminal = Console().is_terminal
    Console(width=None if is_terminal else MAX_WIDTH, highlight=is_terminal).print(table)
