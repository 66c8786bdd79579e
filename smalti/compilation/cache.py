"""Where compiled programs are kept: the folder of the settings, if it is safe."""

import warnings

import jax

from smalti.compilation.folder import PrivateFolder
from smalti.errors import SmaltiWarning
from smalti.settings import settings

_opened: dict[str, PrivateFolder] = {}
"""The folder in use, by its path in the settings; empty while nothing is kept."""


def use_compilation_cache() -> None:
    """Keeps compiled programs in the folder that the settings name; call it before anything is compiled.

    An empty `SMALTI_COMPILATION_CACHE` turns this off. A folder that others can write to is refused with a
    `SmaltiWarning`, since reading a program from it would let them run code here.
    """
    path = settings().compilation_cache
    if path is None:
        _opened.clear()
        return
    if str(path) in _opened:
        return
    _opened.clear()
    try:
        _opened[str(path)] = PrivateFolder.open(path)
    except OSError as error:
        warnings.warn(
            f"SMALTI_COMPILATION_CACHE is not used, so every start compiles: {error}",
            SmaltiWarning,
            stacklevel=2,
        )
        return
    # For whatever is compiled outside of `Program`.
    jax.config.update("jax_compilation_cache_dir", str(path))
    # By default JAX skips programs that compile within a second, but there are many of those.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def kept() -> PrivateFolder | None:
    """Returns the folder of compiled programs; None if none are kept."""
    return next(iter(_opened.values()), None)
