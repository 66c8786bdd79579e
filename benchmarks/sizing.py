"""Says how many of each part so many pictures a day need, and what a thousand of them cost.

    python -m benchmarks.sizing                                  the table of docs/scale.md
    python -m benchmarks.sizing --write docs/scale.md            also writes it there
    python -m benchmarks.sizing --pictures 250000 --price 2.5    other numbers, and the price of a device for an hour

Rates are read from the tables of docs/performance.md, and processor times from `benchmarks.cost`. Nothing is measured.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.markdown import Markdown

from benchmarks.report import write_between
from benchmarks.scale.costs import Costs
from benchmarks.scale.sizing import PAGE, PEAK, PICTURES, read_rates, sizing_tables
from smalti.errors import SmaltiError

BEGIN: Final = "<!-- sizing: written by python -m benchmarks.sizing -->"
END: Final = "<!-- end of sizing -->"


def positive(text: str) -> float:
    """Returns a number above 0; raises `ValueError` for anything else."""
    number = float(text)
    if not 0 < number < float("inf"):
        raise ValueError(text)
    return number


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints or writes the table; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sizing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--pictures", type=positive, nargs="+", default=PICTURES, help="pictures a day")
    parser.add_argument("--peak", type=positive, default=PEAK, help="the busiest hour over the average one")
    parser.add_argument("--price", type=positive, help="price of an accelerator, or two cores, for an hour")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="write the table into this page")
    options = parser.parse_args(arguments)
    try:
        rates = read_rates(PAGE.read_text(encoding="utf-8"))
        lines = sizing_tables(
            Costs.load(), rates, pictures=options.pictures, peak=options.peak, price=options.price
        )
        Console(width=200).print(Markdown("\n".join(lines)))
        if options.write:
            write_between(options.write, lines, begin=BEGIN, end=END)
    except SmaltiError as error:
        print(f"benchmarks.sizing: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
