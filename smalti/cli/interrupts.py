"""Ctrl-C that cannot get lost.

Python raises KeyboardInterrupt wherever the main thread happens to be. In a callback of the garbage collector (JAX has
one) Python prints the exception and ignores it. Therefore Ctrl-C is also recorded, and long work checks for it between
its parts.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_pressed = threading.Event()


@contextmanager
def recorded() -> Iterator[None]:
    """Records Ctrl-C while the block runs, and raises KeyboardInterrupt as usual."""
    _pressed.clear()
    if threading.current_thread() is not threading.main_thread():
        # Only the main thread can handle signals; a caller in another thread has to handle them itself.
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        _pressed.set()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def check() -> None:
    """Raises KeyboardInterrupt if Ctrl-C was pressed since the command began."""
    if _pressed.is_set():
        raise KeyboardInterrupt
