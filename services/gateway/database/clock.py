"""The time, as the gateway keeps it: a clock that can be set, and whole microseconds in the database."""

import time
from collections.abc import Callable

Clock = Callable[[], float]
"""Returns the seconds since 1970 (UTC)."""

MICROSECONDS = 1_000_000


class SystemClock:
    """The machine's clock."""

    def __call__(self) -> float:
        """Returns the time."""
        return time.time()


class ManualClock:
    """A clock that stands still until it is told to go on; for tests."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        """Shows the time that is given."""
        self.now = now

    def __call__(self) -> float:
        """Returns the time."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Goes on."""
        self.now += seconds


def to_microseconds(seconds: float) -> int:
    """Returns a time as the database has it; whole, so that it is the same after a way to a client and back."""
    return round(seconds * MICROSECONDS)


def to_seconds(microseconds: int) -> float:
    """Returns a time of the database in seconds."""
    return microseconds / MICROSECONDS
