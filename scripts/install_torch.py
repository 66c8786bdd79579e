"""Installs the pinned PyTorch into this environment.

The default package of PyTorch on Linux brings 4 GB of CUDA, which only a machine with an NVIDIA GPU uses. On any other
machine this takes the CPU build: from wheels at hand, else from PyTorch's own CPU index if that answers within
seconds. `TORCH_INDEX` names another index; empty, it means pip's default one. Uses the standard library only, since it
runs before anything is installed.
"""

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
MAX_WAIT = 5.0
"""Seconds that an index has to answer, name lookup included."""

PIP = (sys.executable, "-m", "pip", "install")
_OPEN = "import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=float(sys.argv[2])).close()"


def main() -> None:
    """Installs it, unless the pinned version is there."""
    pinned = pinned_version()
    if installed_version() == pinned:
        return
    chosen = arguments(
        pinned, os.environ.get("TORCH_INDEX", CPU_INDEX), default=sys.platform != "linux" or has_nvidia()
    )
    sys.exit(subprocess.run([*PIP, "--constraint", str(CONSTRAINTS), *chosen]).returncode)


def arguments(pinned: str, index: str, *, default: bool) -> list[str]:
    """Returns what to give `pip install`.

    Args:
        pinned: the version, without a local part such as `+cpu`.
        index: address of an index with CPU builds, or "" for pip's default index.
        default: whether the default build is the right one.
    """
    if not default:
        cpu = f"torch=={pinned}+cpu"
        if is_at_hand(cpu):
            return [cpu]
        if index and answers(f"{index.rstrip('/')}/torch/"):
            return ["--extra-index-url", index, cpu]
    return [f"torch=={pinned}"]


def pinned_version() -> str:
    """Returns the version in constraints.txt."""
    found = re.search(r"^torch==(\S+)$", CONSTRAINTS.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        sys.exit(f"{CONSTRAINTS}: must pin torch; run `make constraints`")
    return found[1]


def installed_version() -> str | None:
    """Returns the installed version without its local part, or None."""
    try:
        return version("torch").partition("+")[0]
    except PackageNotFoundError:
        return None


def has_nvidia() -> bool:
    """Tells whether this machine has an NVIDIA GPU, by its driver."""
    return Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi") is not None


def is_at_hand(requirement: str) -> bool:
    """Tells whether pip finds a package with its own configuration."""
    command = [*PIP, "--dry-run", "--no-deps", "--quiet", "--retries", "0", requirement]
    return subprocess.run(command, capture_output=True).returncode == 0


def answers(address: str) -> bool:
    """Tells whether an address answers without an error within `MAX_WAIT`."""
    # A process of its own, since nothing bounds how long a name lookup takes.
    command = [sys.executable, "-c", _OPEN, address, str(MAX_WAIT)]
    try:
        return subprocess.run(command, capture_output=True, timeout=MAX_WAIT).returncode == 0
    except subprocess.TimeoutExpired:
        return False


if __name__ == "__main__":
    main()
