"""Messages that are held back: the worker that received them cannot do the work, but another may.

Such a message goes to a queue of its own, from which the broker, or with Valkey a worker, returns it after a delay. So
it occupies no worker, and is there after a restart. It stays as it came, with its signature. With every time the delay
grows, until the message expires.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from pydantic_core import from_json

from smalti.messages import MAX_CLOCK_SKEW_SECONDS

TIMES_HEADER: Final = "smalti_held"
"""The header that counts how often a message was held back."""
SINCE_HEADER: Final = "smalti_held_since"
"""The header with the Unix time at which that was first done."""
MAX_HELD_SECONDS: Final = 8 * 24 * 3600.0
"""Time after which a message is not held back any more, whatever it says: longer than any job may take."""
MAX_UNDATED_SECONDS: Final = 3600.0
"""The same for a message of which nothing says when it expires."""

_HELD: Final = ".held"

# Valkey keeps the messages of a queue in a sorted set, by the time of its own clock at which they go back.
KEEP_SCRIPT: Final = """
local now = redis.call('TIME')
redis.call('ZADD', KEYS[1], now[1] + now[2] / 1e6 + ARGV[1], ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[3])
"""
"""Keeps a message; takes the set, the delay in seconds, the message, and the seconds after which an unused set is
deleted."""
RETURN_SCRIPT: Final = """
local now = redis.call('TIME')
for index = 1, #KEYS, 2 do
    local held, queue = KEYS[index], KEYS[index + 1]
    local due = redis.call('ZRANGEBYSCORE', held, '-inf', now[1] + now[2] / 1e6, 'LIMIT', 0, ARGV[1])
    for _, message in ipairs(due) do
        redis.call('LPUSH', queue, message)
        redis.call('ZREM', held, message)
    end
    local unused = tonumber(ARGV[(index + 3) / 2])
    if #due > 0 and unused > 0 then redis.call('EXPIRE', queue, unused) end
end
"""
"""Returns messages that are due; takes pairs of a set and its queue, how many messages of each at most, and for each
queue the seconds after which it is deleted if it is unused, or 0."""


def held_queue(origin: str, seconds: float) -> str:
    """Returns the queue from which messages go back to another one after a delay."""
    return f"{origin}{_HELD}.{max(1, round(seconds * 1000))}"


def held_set(origin: str) -> str:
    """Returns the key of Valkey's sorted set of messages that go back to a queue."""
    return f"{origin}{_HELD}"


def split_held(name: str) -> tuple[str, int | None]:
    """Returns the queue that messages go back to, and the delay in milliseconds; None for any other queue."""
    origin, found, delay = name.rpartition(f"{_HELD}.")
    return (origin, int(delay)) if found and delay.isascii() and delay.isdigit() else (name, None)


def expiry_of(text: str) -> float | None:
    """Returns the time until which a message of an unknown version may be held back; None if it does not say one."""
    try:
        expires = from_json(text)["expires"]
    except (ValueError, TypeError, KeyError):
        return None
    if isinstance(expires, bool) or not isinstance(expires, int | float) or not math.isfinite(expires):
        return None
    return float(expires) + MAX_CLOCK_SKEW_SECONDS


@dataclass(frozen=True, kw_only=True)
class Holding:
    """How often a message was held back, and since when."""

    times: int
    since: float
    """Unix time."""

    @classmethod
    def read(cls, headers: Mapping[str, Any], now: float) -> Self:
        """Reads the headers of a message. They are not signed, so that values that make no sense are replaced."""
        times, since = headers.get(TIMES_HEADER), headers.get(SINCE_HEADER)
        is_time = isinstance(since, int | float) and math.isfinite(since) and 0 <= since <= now
        return cls(
            times=times if isinstance(times, int) and 0 <= times < 2**31 else 0,
            since=float(since) if is_time else now,  # type: ignore[arg-type]
        )

    @property
    def next_headers(self) -> dict[str, Any]:
        """The headers of the message when it is held back once more."""
        return {TIMES_HEADER: self.times + 1, SINCE_HEADER: self.since}

    def delay(self, first: float, maximum: float, left: float) -> float:
        """Returns for how many seconds it is held back: twice as long as the time before.

        Args:
            first: seconds of the first time.
            maximum: the longest.
            left: seconds until it must not be held back any more; it is not held back for much longer than these.
        """
        # All delays are of one series, since RabbitMQ has a queue for each.
        doublings = math.ceil(math.log2(max(left / first, 1.0)))
        return min(first * 2.0 ** min(self.times, doublings, 64), maximum)

    def left(self, expires: float | None, now: float) -> float:
        """Returns for how many seconds more it may be held back; zero or less if it must not be any more.

        Args:
            expires: Unix time until which it may be; None if nothing says it.
            now: Unix time.
        """
        if expires is None:
            return self.since + MAX_UNDATED_SECONDS - now
        return min(expires, self.since + MAX_HELD_SECONDS) - now
