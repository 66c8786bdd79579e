"""The limits of each client: concurrent requests, and requests per second."""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Final

from smalti.errors import OverloadedError

BURST_SECONDS: Final = 20.0
"""Time over which the rate of a client is averaged."""
MAX_CLIENTS: Final = 10_000
"""Number of clients that are remembered; the ones seen longest ago are dropped first."""


@dataclass
class _Client:
    running: int
    """Requests in progress."""
    tokens: float
    """Requests that the client may make at once."""
    at: float
    """Time at which `tokens` was computed."""


class ClientLimits:
    """Counts the requests of each client in this process. Only the event loop may use it."""

    def __init__(self, *, requests: int, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Begins without clients.

        Args:
            requests: maximum number of concurrent requests of a client.
            rate: requests per second of a client.
            clock: returns the time in seconds.
        """
        self._requests = requests
        self._rate = rate
        self._burst = max(1.0, rate * BURST_SECONDS)
        self._clock = clock
        self._clients: OrderedDict[str, _Client] = OrderedDict()

    @contextmanager
    def request(self, client: str) -> Iterator[None]:
        """Counts a request of a client while the block runs.

        Raises:
            OverloadedError: the client is at a limit.
        """
        found = self._take(client)
        found.running += 1
        try:
            yield
        finally:
            found.running -= 1

    def _take(self, client: str) -> _Client:
        now = self._clock()
        found = self._clients.pop(client, None) or _Client(0, self._burst, now)
        self._clients[client] = found
        self._drop_old()
        found.tokens = min(self._burst, found.tokens + (now - found.at) * self._rate)
        found.at = now
        if found.running >= self._requests:
            raise OverloadedError(
                f"{found.running} requests of this client are in progress, the maximum; try again when one has ended",
                1.0,
            )
        if found.tokens < 1:
            seconds = (1 - found.tokens) / self._rate
            raise OverloadedError(
                f"this client makes more than {self._rate:g} requests per second; try again in {seconds:.1f} s",
                seconds,
            )
        found.tokens -= 1
        return found

    def _drop_old(self) -> None:
        """Drops clients beyond the maximum, except those with requests in progress."""
        for client in list(islice(self._clients, max(0, len(self._clients) - MAX_CLIENTS))):
            if not self._clients[client].running:
                del self._clients[client]
