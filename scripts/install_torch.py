"""Installs the locked PyTorch into this environment.

The default package of PyTorch on Linux brings 4 GB of CUDA, which only a machine with an NVIDIA GPU uses. On any other
machine this takes the CPU build, if the lock has its hash: from wheels at hand, else from PyTorch's own CPU index if
that answers within seconds. `TORCH_INDEX` names another index; empty, it means pip's default one. `TORCH_BUILD`, `cpu`
or `cuda`, chooses the build for another machine than this one. Uses the standard library only, since it runs before
anything is installed.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from scripts.lock_files import LOCKS, hashes_of, load_lock, version_of

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
MAX_WAIT = 5.0
"""Seconds that an index has to answer, name lookup included."""

PIP = (sys.executable, "-m", "pip", "install", "--require-hashes", "--no-deps", "--only-binary", ":all:")
_LOAD = (
    "import sys, urllib.request\n"
    "sys.stdout.buffer.write(urllib.request.urlopen(sys.argv[1], timeout=float(sys.argv[2])).read())"
)


def main() -> None:
    """Installs it, unless the locked version is there."""
    entry = load_lock(LOCKS / "up.txt")["torch"]
    if installed_version() == version_of(entry):
        return
    index = os.environ.get("TORCH_INDEX", CPU_INDEX)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "torch.txt")
        chosen = arguments(entry, index, default=takes_default(), file=file)
        sys.exit(subprocess.run([*PIP, *chosen]).returncode)


def arguments(entry: str, index: str, *, default: bool, file: Path) -> list[str]:
    """Writes a file of requirements, and returns what to give `pip install`.

    Args:
        entry: what the lock says of torch: its version and its hashes.
        index: address of an index with CPU builds, or "" for pip's default index.
        default: whether the default build is the right one.
        file: where to write the requirement.
    """
    pinned = version_of(entry)
    if not default:
        write_requirement(file, f"torch=={pinned}+cpu", entry)
        if is_at_hand(file):
            return ["--requirement", str(file)]
        python = f"cp{sys.version_info.major}{sys.version_info.minor}"
        if index and cpu_wheels(load_page(index), pinned).get(python, set()) & hashes_of(entry):
            return ["--extra-index-url", index, "--requirement", str(file)]
        print("install_torch: no CPU build that the lock knows is to be had; taking the default build")
    # Not `==`, which a CPU build would match too.
    write_requirement(file, f"torch==={pinned}", entry)
    libraries = ["--requirement", str(LOCKS / "cuda.txt")] if sys.platform == "linux" else []
    return ["--requirement", str(file), *libraries]


def write_requirement(file: Path, requirement: str, entry: str) -> None:
    """Writes a requirement with the hashes of an entry of a lock."""
    hashes = (f"--hash=sha256:{each}" for each in sorted(hashes_of(entry)))
    file.write_text(" ".join([requirement, *hashes]) + "\n", encoding="utf-8")


def takes_default() -> bool:
    """Tells whether the default build of PyTorch is the right one."""
    build = os.environ.get("TORCH_BUILD", "")
    if build not in ("", "cpu", "cuda"):
        sys.exit(f"install_torch: TORCH_BUILD must be cpu or cuda, not {build}")
    return build == "cuda" if build else sys.platform != "linux" or has_nvidia()


def installed_version() -> str | None:
    """Returns the installed version without its local part, or None."""
    try:
        return version("torch").partition("+")[0]
    except PackageNotFoundError:
        return None


def has_nvidia() -> bool:
    """Tells whether this machine has an NVIDIA GPU, by its driver."""
    return Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi") is not None


def is_at_hand(file: Path) -> bool:
    """Tells whether pip finds what a file requires, with its hash, with its own configuration."""
    command = [*PIP, "--dry-run", "--quiet", "--retries", "0", "--requirement", str(file)]
    return subprocess.run(command, capture_output=True).returncode == 0


def load_page(index: str) -> str:
    """Returns the page that an index has for torch, or "" if it does not answer within `MAX_WAIT`."""
    # A process of its own, since nothing bounds how long a name lookup takes.
    command = [sys.executable, "-c", _LOAD, f"{index.rstrip('/')}/torch/", str(MAX_WAIT)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=MAX_WAIT)
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout.decode(errors="replace") if done.returncode == 0 else ""


def cpu_wheels(page: str, pinned: str) -> dict[str, set[str]]:
    """Returns the hashes of the CPU builds for Linux that a page names, for each Python, such as `cp311`."""
    link = rf"torch-{re.escape(pinned)}(?:\+|%2[Bb])cpu-(cp\d+)-\1-[^\"'#>]*linux[^\"'#>]*\.whl#sha256=([0-9a-f]{{64}})"
    found: dict[str, set[str]] = {}
    for python, digest in re.findall(link, page):
        found.setdefault(python, set()).add(digest)
    return found


if __name__ == "__main__":
    main()
