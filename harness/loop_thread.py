"""An event loop in a thread, for servers that a test calls without a loop of its own."""

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

LIMIT = 30.0
"""Seconds after which a coroutine fails."""

Result = TypeVar("Result")


class LoopThread:
    """Runs coroutines in the event loop of a thread."""

    def __init__(self, name: str) -> None:
        """Starts the thread."""
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def begin(self, work: Coroutine[Any, Any, Result]) -> "Future[Result]":
        """Begins to run a coroutine."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Runs a coroutine, and returns its result."""
        return self.begin(work).result(LIMIT)

    def close(self) -> None:
        """Ends the loop and the thread."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(LIMIT)
        self.loop.close()
