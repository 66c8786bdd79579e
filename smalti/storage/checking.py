"""Whether an object store can be written, for health checks."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

from smalti.errors import StoreUnavailableError
from smalti.storage.store import ObjectStore

MAX_AGE_SECONDS: Final = 5.0
"""Age at which an answer of the store is out of date."""
MAX_WAIT_SECONDS: Final = 4.0
"""Time that a health check waits for the store; probes have a few seconds themselves."""


class StoreCheck:
    """Checks the store when somebody asks, at most one check at a time; for one event loop."""

    def __init__(
        self,
        store: ObjectStore,
        *,
        wait: float = MAX_WAIT_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Asks nothing yet.

        Args:
            store: the store.
            wait: seconds after which a store that has not answered counts as one that cannot be written.
            clock: returns the time in seconds.
        """
        self._store = store
        self._wait = wait
        self._clock = clock
        self._check: asyncio.Task[bool] | None = None
        self._begun = 0.0

    async def succeeds(self) -> bool:
        """Returns whether the store could be written within the last seconds."""
        check = self._check
        if check is None or (check.done() and self._clock() - self._begun > MAX_AGE_SECONDS):
            self._begun = self._clock()
            check = self._check = asyncio.create_task(asyncio.to_thread(self._try), name="store check")
        # A check that hangs goes on, so that not every caller starts another one.
        await asyncio.wait({check}, timeout=self._wait)
        return check.done() and check.result()

    def _try(self) -> bool:
        try:
            self._store.check()
        except StoreUnavailableError:
            return False
        return True
