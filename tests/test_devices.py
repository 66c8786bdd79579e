"""A device that is not there, and flags that the compiler does not know, are one line that names the variable."""

import os
import subprocess
import sys

import pytest

from smalti.devices import check_flags, find_device, probe
from smalti.errors import InvalidInputError

pytestmark = pytest.mark.process

FIND = """
from smalti.devices import find_device
from smalti.errors import InvalidInputError
try:
    print(find_device().platform)
except InvalidInputError as error:
    print(error)
"""


def found(platforms: str) -> str:
    """Returns the device that a process finds, or its error: a process finds its devices once."""
    done = subprocess.run(
        [sys.executable, "-c", FIND],
        env={**os.environ, "JAX_PLATFORMS": platforms},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return done.stdout


@pytest.mark.parametrize("platforms", ["rocm", "cuda", "nonsense"])
def test_device_that_is_not_there(platforms: str) -> None:
    said = found(platforms)
    assert said.startswith(f"JAX_PLATFORMS: there is no device of '{platforms}' here (")
    assert said.count("\n") == 1


def test_device_that_is_there() -> None:
    assert find_device().platform == "cpu"
    assert "x cpu (cpu)" in probe()


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ("--xla_nonsense=1", "Unknown flag in XLA_FLAGS: --xla_nonsense=1"),
        ("/nowhere/flags", 'Could not open file "/nowhere/flags"'),
    ],
)
def test_flag_that_ends_the_process(flags: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", flags)
    with pytest.raises(InvalidInputError, match=r"^XLA_FLAGS: ") as caught:
        check_flags()
    assert problem in str(caught.value)


def test_flags_that_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
    check_flags()
