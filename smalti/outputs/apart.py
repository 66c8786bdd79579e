"""Whether an output and the inputs of a command are apart on the disk, whatever their names say."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

from smalti.errors import InvalidInputError

Inputs: TypeAlias = Mapping[str, str | Path | None]
"""The inputs of a command by the names of its arguments; None, and a text that names no file, is skipped."""

_Identity: TypeAlias = tuple[int, int]


def check_apart(out: Path, inputs: Inputs, field: str, *, may_hold_inputs: bool) -> None:
    """Checks that an output is not an input, nor lies in one, nor holds one.

    Files are compared by device and inode, so links, mounts and names in other letter case hide nothing.

    Args:
        out: the output; need not exist.
        inputs: the inputs.
        field: the argument that names the output, for errors.
        may_hold_inputs: whether inputs may be below the output, as is safe if nothing there is ever removed.

    Raises:
        InvalidInputError: they are not apart.
    """
    own, above_out = _identity(out), list(_with_parents(out))
    for name, given in inputs.items():
        if given is None or (identity := _identity(Path(given))) is None:
            continue
        if identity == own:
            relation = "is"
        elif identity in above_out:
            relation = "lies in"
        elif not may_hold_inputs and own in list(_with_parents(Path(given))):
            relation = "holds"
        else:
            continue
        raise InvalidInputError(
            field, f"{out} {relation} the input {name}, {given}; give a place apart from it"
        )


def real_path(path: Path) -> Path:
    """Returns the path that links lead to, as far as it exists; unlike `Path.resolve`, never raises."""
    return Path(os.path.realpath(path))


def _with_parents(path: Path) -> Iterator[_Identity]:
    """Yields the identity of a path and of each folder above it, through links; what does not exist is skipped."""
    real = real_path(path)
    for each in (real, *real.parents):
        identity = _identity(each)
        if identity is not None:
            yield identity


def _identity(path: Path) -> _Identity | None:
    try:
        found = path.stat()
    except (OSError, ValueError):  # ValueError: a NUL character in a text that is no path.
        return None
    return found.st_dev, found.st_ino
