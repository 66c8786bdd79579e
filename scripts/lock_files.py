"""Reads the locks. Uses the standard library only, since `make` reads them before anything is installed."""

import re
from pathlib import Path

LOCKS = Path(__file__).resolve().parent.parent / "locks"

Lock = dict[str, str]
"""The entries of a lock, by the name of the package: version, markers, hashes and comments, as they are in the file."""


def load_lock(path: Path) -> Lock:
    """Returns the entries of a lock. A package that has several, for different Pythons, has them in one text."""
    lock: Lock = {}
    name = ""
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.startswith("#"):
            continue
        if not line[0].isspace():
            name = re.split(r"[=;\s]", line, maxsplit=1)[0]
        lock[name] = lock.get(name, "") + line
    return lock


def version_of(entry: str) -> str:
    """Returns the version in an entry, the first if there are several."""
    return entry.partition("==")[2].split()[0]


def hashes_of(entry: str) -> set[str]:
    """Returns the SHA-256 hashes of an entry, in hexadecimal."""
    return set(re.findall(r"--hash=sha256:([0-9a-f]{64})\b", entry))
