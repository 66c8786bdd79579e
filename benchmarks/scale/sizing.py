"""The arithmetic of docs/scale.md: how many of each part so many pictures a day need."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.scale.costs import Costs
from benchmarks.scale.pages import format_count, table
from benchmarks.scale.planning import CANDIDATES, CHUNKS, CORES, DAY, TARGET, demand_of
from harness.paths import DOCS
from smalti.errors import InvalidInputError
from smalti.services.gateway.database.connection import CONNECTIONS

PAGE: Final = DOCS / "performance.md"
PICTURES: Final = (10_000, 100_000, 1_000_000, 10_000_000)
"""Pictures a day in the table."""
PEAK: Final = 3.0
"""An assumption: the busiest hour has three times as many pictures as the average one."""
GATEWAYS: Final = 2
"""The fewest gateways: one can be replaced while the other answers."""
OWN_CONNECTIONS: Final = 1
"""Connections of a gateway to PostgreSQL outside its pool: the one on which it hears of the other gateways."""
HOUR: Final = 3600


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Pictures a second of one device that is always full, as docs/performance.md has it."""

    stage: str
    """The stage that runs on the device."""
    device: str
    how: str
    """Whether it was measured or estimated, and with what."""
    row: str
    """How the row of the page begins, a regular expression."""
    value: Callable[[list[str]], float]
    """Takes the cells after the first; returns pictures a second."""


def _number(cell: str) -> float:
    return float(cell.split()[0].replace(",", ""))


RATES: Final = (
    Rate(
        stage="generator",
        device="two CPU cores",
        how="mini, 16 slots, measured",
        row=r"tokens of 16 candidates, share of the machine's limit",
        value=lambda cells: 16 / _number(cells[0]),
    ),
    Rate(
        stage="generator",
        device="v5e chip",
        how="mini, 64 slots, the compiler's estimate",
        row="mini-step-64-v5e-1x1",
        value=lambda cells: _number(cells[-1]),
    ),
    Rate(
        stage="generator",
        device="v5e chip",
        how="mega, 64 slots, the compiler's estimate",
        row="mega-step-64-v5e-1x1",
        value=lambda cells: _number(cells[-1]),
    ),
    Rate(
        stage="generator",
        device="H100",
        how="mini, 16 slots, measured",
        row="mini, 16 slots, a token, bfloat16",
        value=lambda cells: _number(cells[1]),
    ),
    Rate(
        stage="decoder",
        device="two CPU cores",
        how="the published VQGAN, measured",
        row="VQGAN decode of 9 pictures",
        value=lambda cells: 9 / _number(cells[0]),
    ),
    Rate(
        stage="decoder",
        device="H100",
        how="the published VQGAN, bfloat16, measured",
        row="VQGAN, 16 pictures by 16, a picture, bfloat16",
        value=lambda cells: _number(cells[1]),
    ),
)


def read_rates(page: str) -> dict[Rate, float]:
    """Returns the pictures a second of each device; raises `InvalidInputError` if the page lacks a row."""
    found = {}
    for rate in RATES:
        row = re.search(rf"^\| ({rate.row}[^|]*)\|(.*)\|$", page, re.MULTILINE)
        if row is None:
            raise InvalidInputError(
                "docs/performance.md",
                f"has no row {rate.row!r}; `make bench`, `make tpu` and so on write them",
            )
        found[rate] = rate.value([cell.strip() for cell in row[2].split("|")])
    return found


def sizing_tables(
    costs: Costs,
    rates: Mapping[Rate, float],
    *,
    pictures: Sequence[float] = PICTURES,
    peak: float = PEAK,
    price: float | None = None,
) -> list[str]:
    """Returns the lines, in Markdown, of what each number of pictures needs, and of what a thousand pictures take.

    Args:
        costs: what jobs cost the system.
        rates: pictures a second of each device.
        pictures: numbers of pictures a day, a column for each.
        peak: the busiest hour over the average one.
        price: price of a device for an hour; without it there is no column of prices.
    """
    columns = {f"{format_count(number)} a day": _needs(costs, rates, number, peak) for number in pictures}
    devices: dict[str, dict[str, str]] = {"pictures a second, full": {}, "hours for 1,000 pictures": {}}
    if price is not None:
        devices["price of 1,000 pictures"] = {}
    for rate, value in rates.items():
        hours = 1000 / (value * TARGET * HOUR)
        name = _name(rate)
        devices["pictures a second, full"][name] = format_count(value)
        devices["hours for 1,000 pictures"][name] = f"{hours:.3g}"
        if price is not None:
            devices["price of 1,000 pictures"][name] = f"{hours * price:.3g}"
    return ["", *table("part", columns), "", *table("one device", devices), ""]


def _name(rate: Rate) -> str:
    return f"{rate.stage} on {rate.device} ({rate.how})"


def _needs(costs: Costs, rates: Mapping[Rate, float], pictures: float, peak: float) -> dict[str, str]:
    a_second = pictures * peak / DAY
    jobs = a_second / CANDIDATES
    demand = demand_of(costs)

    def whole(cores: float, least: int = 1) -> int:
        return max(least, math.ceil(cores / TARGET))

    gateways = whole(jobs * demand.of("gateway", CHUNKS), GATEWAYS)
    needs = {
        "pictures a second, busiest hour": format_count(a_second),
        "jobs a second of 16 pictures": format_count(jobs),
    }
    needs |= {_name(rate): f"{math.ceil(a_second / (value * TARGET)):,}" for rate, value in rates.items()}
    # Of the shipped model, with its engines: no other is measured.
    needs |= {
        f"{stage}s, a core each (shipped model)": f"{whole(jobs * costs.model[f'processor: {stage}']):,}"
        for stage in ("encoder", "ranker")
    }
    needs |= {
        "gateways, a core each": f"{gateways:,}",
        "connections to PostgreSQL, at most": f"{gateways * (CONNECTIONS + OWN_CONNECTIONS):,}",
        "brokers (Valkey), a core each": f"{whole(jobs * demand.of('broker', CHUNKS) / CORES['broker']):,}",
        "cores of the database": f"{whole(jobs * demand.of('database', CHUNKS)):,}",
        "cores of the store": f"{whole(jobs * demand.of('store', CHUNKS)):,}",
    }
    return needs
