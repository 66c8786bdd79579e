"""A command that is run against the system, in the terminal of the one who started it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from smalti.errors import InvalidInputError


def find_program(name: str) -> list[str]:
    """Returns the beginning of a command: a program, of this installation where it has one.

    Raises:
        InvalidInputError: there is no such program.
    """
    program = shutil.which(name, path=_path())
    if program is None:
        raise InvalidInputError("COMMAND", f"{name}: there is no such program")
    return [program]


def run_guarded(command: Sequence[str], environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    """Starts a command that dies with this process.

    Args:
        command: the program and its arguments.
        environment: what its environment has beside this process's.
    """
    guard = Path(__file__).with_name("guard.py")
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(guard), str(os.getpid()), "", *command],
        env={**os.environ, "PATH": _path(), **environment},
    )


def hears_the_terminal() -> bool:
    """Tells whether Ctrl-C in the terminal reaches this process, and so its children too."""
    try:
        with Path("/dev/tty").open("rb") as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False


def _path() -> str:
    return os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
