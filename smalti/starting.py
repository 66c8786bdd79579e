"""What makes the start of a process quicker, and its end."""

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache


@contextmanager
def without_collection() -> Iterator[None]:
    """Pauses the garbage collector while modules are imported and a model is loaded.

    Almost everything that is made then stays until the process ends. Afterwards the collector passes over it for good,
    also at the exit.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()


@cache
def exit_without_collection() -> None:
    """Lets the interpreter exit without a last pass over everything that JAX and torch have made.

    Until then, objects are collected as ever, unlike after `without_collection`: a user's process may load one model
    after the other.
    """
    atexit.register(gc.freeze)
