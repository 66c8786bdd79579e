"""Prints for which platforms each lock has wheels, as a table: `python -m scripts.platforms`. Installs nothing."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from scripts.lock_files import LOCKS

PLATFORMS: Final = {
    "Linux x86-64": "x86_64-manylinux_2_31",
    "Linux arm64": "aarch64-manylinux_2_31",
    "macOS 14 arm64": "aarch64-apple-darwin",
}
"""uv's names of the platforms."""
DEVICES: Final = ("jax-", "cuda")
"""How the names of locks begin that are for Linux only."""
LEFT_OUT: Final = frozenset({"build", "deploy", "dev"})
"""Locks for those who build Smalti."""
PYTHON: Final = "3.11"


def main() -> None:
    """Prints the table, and on the standard error stream what is missing."""
    print(f"| lock | {' | '.join(PLATFORMS)} |\n|---|{'---|' * len(PLATFORMS)}")
    for path in sorted(LOCKS.glob("*.txt")):
        if path.stem not in LEFT_OUT:
            cells = [cell(path, platform) for platform in PLATFORMS.values()]
            print(f"| `{path.stem}` | {' | '.join(cells)} |", flush=True)


def cell(lock: Path, platform: str) -> str:
    """Returns whether every package of a lock has a wheel with a locked hash for a platform."""
    if lock.stem.startswith(DEVICES) and "darwin" in platform:
        return "not meant for it"
    uv = Path(sys.executable).with_name("uv")
    target = {**os.environ, "MACOSX_DEPLOYMENT_TARGET": "14.0"}
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [uv, "pip", "install", "--dry-run", "--quiet", "--target", folder, "--no-deps", "--require-hashes",
             "--only-binary", ":all:", "--python-platform", platform, "--python-version", PYTHON,
             "--requirement", lock],
            capture_output=True, text=True, check=False, env=target,
        )  # fmt: skip
    if done.returncode:
        print(f"platforms: {lock.stem}, {platform}: {done.stderr.strip()}", file=sys.stderr)
    return "no" if done.returncode else "yes"


if __name__ == "__main__":
    main()
