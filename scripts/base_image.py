"""Prints the name of a base for the images, and makes one if there is none: `python -m scripts.base_image`.

The base is `python:3.11-slim` if the engine has it or can pull it. Where no registry can be reached, it is made from
Debian's packages with mmdebstrap, and kept for a month in the user's cache (`XDG_CACHE_HOME`). Uses the standard
library only; podman or docker must be there.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

PUBLIC: Final = "python:3.11-slim"
PULL_SECONDS: Final = 300
KEPT_SECONDS: Final = 30 * 24 * 3600
"""Debian's security updates are to get into the images."""

SUITE: Final = "bookworm"
PACKAGES: Final = (
    *("python3-minimal", "python3-venv", "python-is-python3"),
    *("ca-certificates", "media-types", "netbase", "tzdata"),
)
NO_USRMERGE: Final = "etc/apt/preferences.d/usrmerge"
OPTIONS: Final = (
    *("--quiet", "--variant=minbase", f"--include={','.join(PACKAGES)}"),
    # /usr is merged from the beginning, so that the package that merges it later, and with it Perl, is not needed.
    "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
    f'--setup-hook=printf "Package: usrmerge\\nPin: release *\\nPin-Priority: -1\\n" > "$1/{NO_USRMERGE}"',
    f'--customize-hook=rm "$1/{NO_USRMERGE}"',
    *(f"--dpkgopt=path-exclude=/usr/share/{each}/*" for each in ("doc", "man", "locale")),
    # Licences stay.
    "--dpkgopt=path-include=/usr/share/doc/*/copyright",
)


def main() -> None:
    """Prints the name; everything else goes to the standard error stream."""
    engine = next((each for each in ("podman", "docker") if shutil.which(each)), None)
    if engine is None:
        sys.exit("base_image: neither podman nor docker is installed; install one of them")
    print(PUBLIC if has(engine, PUBLIC) or pull(engine) else make(engine))


def has(engine: str, image: str) -> bool:
    """Tells whether the engine has an image."""
    return run(engine, "image", "inspect", image).returncode == 0


def pull(engine: str) -> bool:
    """Tells whether the public base could be pulled."""
    try:
        return run(engine, "pull", "--quiet", PUBLIC, seconds=PULL_SECONDS).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def make(engine: str) -> str:
    """Returns the name of an image of Debian's packages."""
    archive = archive_of_packages()
    # The name says what is in it, so that layers above it are built anew only if it is another.
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()[:12]
    name = f"localhost/smalti/base:{SUITE}-{digest}"
    if not has(engine, name):
        done = run(engine, "import", str(archive), name)
        if done.returncode:
            sys.exit(f"base_image: {archive}: {engine} cannot import it: {done.stderr.strip()}")
    return name


def archive_of_packages() -> Path:
    """Returns the archive of Debian's packages; makes it if there is none that is recent."""
    key = hashlib.sha256("\n".join((SUITE, *OPTIONS)).encode()).hexdigest()[:12]
    archive = cache() / f"base-{SUITE}-{key}.tar"
    if archive.exists() and time.time() - archive.stat().st_mtime < KEPT_SECONDS:
        return archive
    if shutil.which("mmdebstrap") is None:
        sys.exit(f"base_image: {PUBLIC} cannot be pulled; install mmdebstrap, or name a base with --base")
    archive.parent.mkdir(parents=True, exist_ok=True)
    part = archive.with_name(f"{archive.name}.{os.getpid()}")
    try:
        # Its progress, and what went wrong, are its own lines.
        if subprocess.run(["mmdebstrap", *OPTIONS, SUITE, str(part)], stdout=sys.stderr).returncode:
            sys.exit("base_image: mmdebstrap failed; its lines above say why")
        part.replace(archive)
    finally:
        part.unlink(missing_ok=True)
    return archive


def cache() -> Path:
    """Returns the folder for archives, outside the repository."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "smalti" / "images"


def run(*command: str, seconds: float | None = None) -> "subprocess.CompletedProcess[str]":
    """Runs a command to its end."""
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)


if __name__ == "__main__":
    main()
