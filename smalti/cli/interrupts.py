"""Ctrl-C that cannot get lost.

Python raises KeyboardInterrupt wherever the main thread happens to be. In a callback of the garbage collector (JAX has
one) it is printed, ignored, and gone. So the wish is also written down, and long work asks for it between its parts.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_asked = threading.Event()


@contextmanager
def heeded() -> Iterator[None]:
    """Writes Ctrl-C down while the block runs, and raises KeyboardInterrupt as usual."""
    _asked.clear()
    if threading.current_thread() is not threading.main_thread():
        # Signals are the main thread's; whoever runs a command in another one takes care of them.
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        _asked.set()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def check() -> None:
    """Raises KeyboardInterrupt if Ctrl-C was pressed since the command began."""
    if _asked.is_set():
        raise KeyboardInterrupt
