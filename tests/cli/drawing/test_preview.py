"""The preview in a terminal, which is left out where it would show nothing."""

import io

import pytest
from rich.console import Console

from smalti.cli.drawing.preview import shows_pictures


@pytest.mark.parametrize(
    ("variables", "encoding", "shown"),
    [
        ({"TERM": "xterm-256color"}, "utf-8", True),
        ({"TERM": "xterm", "COLORTERM": "truecolor"}, "utf-8", True),
        ({"TERM": "xterm-256color", "NO_COLOR": "1"}, "utf-8", False),
        ({"TERM": "dumb"}, "utf-8", False),
        ({"TERM": "xterm-256color"}, "latin-1", False),
        ({"TERM": "xterm-256color"}, "ascii", False),
        ({"TERM": "xterm-256color"}, "no such encoding", False),
    ],
)
def test_terminal_without_colours_or_blocks_gets_no_preview(
    variables: dict[str, str], encoding: str, shown: bool
) -> None:
    class Terminal(io.StringIO):
        @property
        def encoding(self) -> str:  # type: ignore[override]
            return encoding

        def isatty(self) -> bool:
            return True

    assert shows_pictures(Console(file=Terminal(), _environ=variables)) is shown


def test_file_gets_no_preview() -> None:
    assert not shows_pictures(Console(file=io.StringIO(), _environ={"TERM": "xterm-256color"}))
