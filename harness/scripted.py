"""What the scripted services share: faults of their answers, and pages."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, TypeVar

from smalti.errors import UnavailableError

Item = TypeVar("Item")


class Faults:
    """The faults of a scripted service."""

    def __init__(self) -> None:
        """Creates a service without faults."""
        self.calls: dict[str, list[Any]] = defaultdict(list)
        """The requests to each method."""
        self.lost_answers: dict[str, int] = defaultdict(int)
        """The number of next calls of a method that do their work and then fail with UNAVAILABLE."""
        self.breaks: dict[str, list[int]] = defaultdict(list)
        """The number of messages after which the next streams of a method break, one each."""
        self.damaged = 0
        """The number of next files that are sent damaged."""

    def _lose(self, method: str) -> None:
        if self.lost_answers[method]:
            self.lost_answers[method] -= 1
            raise UnavailableError("the response was lost")

    def _breaks(self, method: str) -> int | None:
        return self.breaks[method].pop(0) if self.breaks[method] else None


def page(found: Sequence[Item], token: str, size: int) -> tuple[Sequence[Item], str]:
    """Returns the page with a token, and the token of the next one; empty for the last one."""
    end = int(token or 0) + size
    return found[end - size : end], str(end) if end < len(found) else ""
