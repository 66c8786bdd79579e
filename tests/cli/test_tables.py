"""Tables of commands lose nothing, wherever they are printed."""

import pytest

from smalti.cli.operations import tables

COLUMNS, ROWS = ("name", "address"), [("x" * 60, "y" * 60)]


def test_nothing_is_cut_in_a_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    tables.print_table(COLUMNS, ROWS)
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["name", "address"],
        ["x" * 60, "y" * 60],
    ]


def test_lines_wrap_in_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"COLUMNS": "80", "FORCE_COLOR": "1", "TERM": "dumb"}.items():
        monkeypatch.setenv(name, value)
    tables.print_table(COLUMNS, ROWS)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert (shown.count("x"), shown.count("y"), "…" in shown) == (60, 60, False)
