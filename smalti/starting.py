"""What makes the start of a process quicker."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


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
