"""Calls of programs that manage a deployment."""

import subprocess
from collections.abc import Mapping, Sequence
from typing import Final

from smalti.errors import SmaltiError

CALL_SECONDS: Final = 120.0


class ProgramError(SmaltiError):
    """A program that manages a deployment has failed."""


def run(
    command: Sequence[str],
    *,
    text: str | None = None,
    seconds: float = CALL_SECONDS,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Runs a program to its end, and returns its output; raises `ProgramError` with what it says if it fails."""
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=seconds, check=False, env=environment
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ProgramError(f"{' '.join(command[:3])}: {error}") from error
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise ProgramError(f"{' '.join(command[:3])}: {said[-600:]}")
    return done.stdout
