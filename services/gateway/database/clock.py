"""Time in the gateway: a clock that tests can set, and whole microseconds in the database."""

import time
from collections.abc import Callable

Clock = Callable[[], float]
"""Returns the time in seconds since 1970 (UTC)."""

MICROSECONDS = 1_000_000


class SystemClock:
    """The machine's clock."""

    def __call__(self) -> float:
        """Returns the time in seconds since 1970 (UTC)."""
        return time.time()


class ManualClock:
    """A clock that stands still until `advance` is called; for tests."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Returns the time in seconds since 1970 (UTC)."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Moves the clock forward."""
        self.now += seconds


def to_microseconds(seconds: float) -> int:
    """Converts a time to the database's unit. It is whole, so that it survives the trip to a client and back."""
    return round(seconds * MICROSECONDS)


def to_seconds(microseconds: int) -> float:
    """Converts a time of the database to seconds."""
    return microseconds / MICROSECONDS
