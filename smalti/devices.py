"""The device that computes, asked for once before anything is compiled."""

import os
import subprocess
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

from smalti.errors import InvalidInputError

if TYPE_CHECKING:
    import jax

__all__ = ["PROBE_SECONDS", "check_flags", "find_device", "probe", "run_apart"]

PLATFORMS: Final = "JAX_PLATFORMS"
FLAGS: Final = "XLA_FLAGS"
PROBE_SECONDS: Final = 120.0
"""Time for a process that asks for the device; a driver can hang."""

_PROBE: Final = """
import jax
found = jax.devices()
print(f"{len(found)} x {found[0].device_kind} ({found[0].platform})")
"""


def check_flags() -> None:
    """Checks the compiler's flags, in a process of its own if there are any: it ends the process that has a wrong one.

    Raises:
        InvalidInputError: the compiler does not know a flag; names `XLA_FLAGS`.
    """
    if os.environ.get(FLAGS) and find_spec("jax") is not None:
        probe()


def probe() -> str:
    """Returns the device, as a process of its own finds it, in a few words.

    Raises:
        InvalidInputError: there is no such device, or a flag is wrong; names the variable.
    """
    try:
        done = run_apart(_PROBE)
    except subprocess.TimeoutExpired:
        raise InvalidInputError(
            PLATFORMS,
            f"the device does not answer within {PROBE_SECONDS:.0f} s; set {PLATFORMS}=cpu to do without",
        ) from None
    if done.returncode == 0:
        return done.stdout.strip().splitlines()[-1]
    said = done.stderr.strip().splitlines()
    wrong = [line for line in said if FLAGS in line]
    if wrong:
        raise InvalidInputError(FLAGS, f"{wrong[-1].partition('] ')[2] or wrong[-1]}; correct or unset it")
    raise _absent(said[-1] if said else f"its process ended with {done.returncode}")


def run_apart(code: str) -> "subprocess.CompletedProcess[str]":
    """Runs code in a Python process of its own, since it may hang, or end its process.

    Raises:
        subprocess.TimeoutExpired: it has not ended after `PROBE_SECONDS`.
    """
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=PROBE_SECONDS,
        stdin=subprocess.DEVNULL,
    )


def find_device() -> "jax.Device":
    """Returns the first device of this process.

    Raises:
        InvalidInputError: the device that the environment asks for is not there; names the variable.
    """
    import jax

    try:
        return jax.devices()[0]
    except Exception as error:  # It depends on the platform what is raised: AssertionError, RuntimeError ...
        raise _absent(" ".join(str(error).split()) or type(error).__name__) from error


def _absent(problem: str) -> InvalidInputError:
    asked = os.environ.get(PLATFORMS, "")
    what = f"there is no device of {asked!r} here" if asked else "no device can be used"
    return InvalidInputError(
        PLATFORMS,
        f"{what} ({problem}); set {PLATFORMS}=cpu, or install the driver and JAX's package for the device",
    )
