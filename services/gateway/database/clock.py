"""Time in the gateway: a clock that tests can set, and whole microseconds in the database."""

import sys
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


def uptime() -> float:
    """Returns seconds that only grow, and do so while the machine is suspended too."""
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class DatabaseClock:
    """The clock of the database's server, which all gateways share: their own clocks may differ, and be set.

    The server is asked now and then; in between, the time since the last answer is added.
    """

    def __init__(self, ask: Callable[[], float]) -> None:
        """Asks for the time once.

        Args:
            ask: asks the server for the time in seconds since 1970.

        Raises:
            DatabaseUnavailableError: the server does not answer.
        """
        self._ask = ask
        self.synchronize()

    def synchronize(self) -> None:
        """Asks the server for the time; raises `DatabaseUnavailableError`."""
        began = uptime()
        now = self._ask()
        self._difference = now - (began + uptime()) / 2

    def __call__(self) -> float:
        """Returns the time in seconds since 1970 (UTC)."""
        return uptime() + self._difference


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
