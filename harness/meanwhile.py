"""Doing something in another thread while a block runs."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


@contextmanager
def meanwhile(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Calls `work` in a thread with an event that is set when the block ends; raises what it raises."""
    over = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        working = threads.submit(work, over)
        try:
            yield
        finally:
            over.set()
            working.result()
