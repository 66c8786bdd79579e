"""The sizing table is that of the command, and its figures are those of the page they come from."""

from pathlib import Path

import pytest

from benchmarks import sizing
from benchmarks.scale.costs import Costs
from benchmarks.scale.sizing import PAGE, RATES, read_rates, sizing_tables
from harness.paths import DOCS
from smalti.errors import InvalidInputError


def test_table_of_the_page_is_that_of_the_command() -> None:
    page = (DOCS / "scale.md").read_text(encoding="utf-8")
    lines = sizing_tables(Costs.load(), read_rates(PAGE.read_text(encoding="utf-8")))
    assert "\n".join((sizing.BEGIN, *lines, sizing.END)) in page, (
        "run `python -m benchmarks.sizing --write docs/scale.md`"
    )


def test_rates_are_read_from_the_tables_of_performance() -> None:
    page = """
| tokens of 16 candidates, share of the machine's limit (x) | 8 s (7 s to 9 s) |  | 0.5 | reached |
| mini-step-64-v5e-1x1 | 4.33 | 0.64 | 7 | 50.5 |
| mega-step-64-v5e-1x1 | 20.5 | 0.60 | 12 | 12.5 |
| mini, 16 slots, a token, bfloat16 | 1.96 (1.93 to 1.98) | 32 | 0.222 |
| VQGAN decode of 9 pictures | 4.5 s (4 s to 5 s) | 11.3 s | 1.67x | reached |
| VQGAN, 16 pictures by 16, a picture, bfloat16 | 2.04 (1.99 to 2.17) | 1,490 | |
"""
    assert list(read_rates(page).values()) == [2, 50.5, 12.5, 32, 2, 1490]
    with pytest.raises(InvalidInputError, match=r"docs/performance\.md: has no row 'mega-step-64-v5e-1x1'"):
        read_rates(page.replace("mega-step", "mega-walk"))


def test_devices_are_enough_for_the_busiest_hour_and_a_price_is_for_each_row() -> None:
    rates = dict.fromkeys(RATES, 1.0)
    lines = sizing_tables(Costs.load(), rates, pictures=[86_400 * 7], peak=2, price=36)
    assert any(line.startswith("| generator on H100") and line.endswith("| 20 |") for line in lines)
    # 1000 pictures at 0.7 a second.
    assert any(line.startswith("| decoder on H100") and line.endswith("| 0.397 | 14.3 |") for line in lines)


def test_page_without_the_marks_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing", encoding="utf-8")
    assert sizing.main(["--write", str(page)]) == 2
    assert capsys.readouterr().err.startswith("benchmarks.sizing: --write: ")
    assert page.read_text(encoding="utf-8") == "nothing"
    with pytest.raises(SystemExit):
        sizing.main(["--pictures", "0"])
