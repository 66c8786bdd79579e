"""Commands that die with this process, among them the one that `smalti up -- COMMAND` runs."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from smalti.entrance import variables
from smalti.errors import InvalidInputError


def find_program(name: str) -> list[str]:
    """Returns the path of a program, preferably of this installation, as the start of a command.

    Raises:
        InvalidInputError: the program does not exist.
    """
    program = shutil.which(name, path=_path())
    if program is None:
        raise InvalidInputError("COMMAND", f"{name}: no such program; check its name and PATH")
    return [program]


def guarded(command: Sequence[str | Path], *, user: str = "") -> list[str]:
    """Returns a command line that runs a command, and kills it when this process ends.

    The kernel ties it to the thread that starts it: that thread must live as long as the command may run.

    Args:
        command: the program and its arguments.
        user: the user to run as; empty for the current one.
    """
    guard = Path(__file__).with_name("guard.py")
    return [sys.executable, "-I", "-S", str(guard), str(os.getpid()), user, *map(str, command)]


def run_guarded(
    command: Sequence[str], environment: Mapping[str, str], *, umask: int = -1
) -> "subprocess.Popen[bytes]":
    """Starts a command that dies with this process.

    Args:
        command: the program and its arguments.
        environment: variables in addition to those with which this process was started.
        umask: the command's mask of file modes; -1 for that of this process.
    """
    return subprocess.Popen(
        guarded(command), env={**variables.inherited(), "PATH": _path(), **environment}, umask=umask
    )


def hears_the_terminal() -> bool:
    """Returns whether Ctrl-C in the terminal reaches this process, and so its children too."""
    try:
        with Path("/dev/tty").open("rb") as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False


def _path() -> str:
    return os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
