"""Where compiled programs are kept: the folders of the settings, if they are safe."""

import os
import warnings
from typing import Final

import jax

from smalti.compilation.bundle import Bundle
from smalti.compilation.folder import PrivateFolder
from smalti.compilation.serialized import UnfitProgramError
from smalti.devices import find_device
from smalti.errors import SmaltiWarning
from smalti.settings import PREFIX, Settings, settings

VARIABLE: Final = f"{PREFIX}COMPILATION_CACHE"
AHEAD_VARIABLE: Final = f"{PREFIX}COMPILED"

_opened: dict[str, PrivateFolder] = {}
"""The folder in use, by its path in the settings; empty while nothing is kept."""
_made_ahead: dict[tuple[str, str], Bundle] = {}
"""The programs that were compiled ahead, by the settings that name them; empty if there are none."""


def use_compilation_cache() -> None:
    """Keeps compiled programs in the folder that the settings name; call it before anything is compiled.

    Programs that were compiled ahead (`smalti compile`) are looked up first, in the folder of `SMALTI_COMPILED`. One
    that is not trusted, or that was made for another machine, is left out with a `SmaltiWarning` that says why.

    An empty `SMALTI_COMPILATION_CACHE` turns this off. A folder that others can write to is refused with a
    `SmaltiWarning`, since reading a program from it would let them run code here. One that cannot be written is read,
    with a warning too.

    Raises:
        InvalidInputError: there is no device to compile for.
    """
    find_device()
    given = settings()
    _use_made_ahead(given)
    path = given.compilation_cache
    if path is None:
        _opened.clear()
        if VARIABLE not in os.environ:
            _warn(
                "is not set, and this user has no home for its default, so every start compiles; set it to a folder"
            )
        return
    if str(path) in _opened:
        return
    _opened.clear()
    try:
        _opened[str(path)] = PrivateFolder.open(path, trust_parents=given.compilation_cache_volume)
    except OSError as error:
        problem = f"{error.filename}: {error.strerror}" if error.filename else error
        _warn(f"is not used, so every start compiles: {problem}")
        return
    if problem := _opened[str(path)].find_problem():
        # JAX's own cache would warn for each program.
        _opened[str(path)].read_only = True
        _warn(f"{path} cannot be written, so every start compiles what it lacks: {problem}")
        return
    # For whatever is compiled outside of `Program`.
    jax.config.update("jax_compilation_cache_dir", str(path))
    # By default JAX skips programs that compile within a second, but there are many of those.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _use_made_ahead(given: Settings) -> None:
    """Opens the folder of programs that were compiled ahead, if the settings name one."""
    if given.compiled is None:
        _made_ahead.clear()
        return
    named = (str(given.compiled), given.compiled_sha256)
    if named in _made_ahead:
        return
    _made_ahead.clear()
    try:
        _made_ahead[named] = Bundle.open(
            given.compiled, given.compiled_sha256, trust_parents=given.compilation_cache_volume
        )
    except UnfitProgramError as error:
        _warn(f"{given.compiled} is not used, so what it holds is compiled: {error}", AHEAD_VARIABLE)


def _warn(problem: str, variable: str = VARIABLE) -> None:
    warnings.warn(f"{variable} {problem}", SmaltiWarning, stacklevel=4)


def kept() -> PrivateFolder | None:
    """Returns the folder of compiled programs; None if none are kept."""
    return next(iter(_opened.values()), None)


def made_ahead() -> Bundle | None:
    """Returns the programs that were compiled ahead; None if there are none."""
    return next(iter(_made_ahead.values()), None)
