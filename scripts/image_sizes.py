"""Measures images, unpacked and as a registry keeps them: `python -m scripts.image_sizes IMAGE ...`.

Prints a table; `--write FILE` writes it into a page in place of the last one. buildah must be there, since it has
the images.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from benchmarks.report import table_lines, write_between
from scripts.images import JAX_BUILDS, TORCH_BUILDS
from smalti.errors import InvalidInputError

BEGIN, END = "<!-- sizes: written by scripts.image_sizes -->", "<!-- end of sizes -->"
COLUMNS: Final = (
    "image",
    "unpacked",
    "compressed, as a registry keeps it",
    "of it, layers that all images share",
)


def main() -> None:
    """Prints the table, and writes it if that was asked for; ends with a line if something is wrong."""
    parser = argparse.ArgumentParser(prog="image_sizes", description="Measures images.")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--write", type=Path, metavar="FILE", help="page to write the table into")
    options = parser.parse_args()
    found = {image: layers(image) for image in options.images}
    shared = frozenset.intersection(*(frozenset(each.items()) for each in found.values()))
    together = megabytes(sum(size for _, size in shared))
    rows = [
        (f"`{label(image)}`", unpacked(image), megabytes(sum(each.values())), together)
        for image, each in found.items()
    ]
    today = datetime.now(UTC).strftime("%Y-%m-%d")
    lines = [f"Measured on {today}:", "", *table_lines(COLUMNS, rows)]
    print("\n".join(lines))
    if options.write:
        try:
            write_between(options.write, lines, begin=BEGIN, end=END)
        except InvalidInputError as error:
            sys.exit(f"image_sizes: {error}")


def label(image: str) -> str:
    """Returns the service of an image, with the builds for accelerators that its tag names."""
    service, _, tag = image.rpartition("/")[2].partition(":")
    builds = [each for each in tag.split("-") if each != "cpu" and each in (*JAX_BUILDS, *TORCH_BUILDS)]
    return "-".join([service, *builds])


def unpacked(image: str) -> str:
    """Returns the size of an image's files, as buildah says it: 280 MB."""
    return str(json.loads(run("buildah", "images", "--json", image))[0]["size"])


def layers(image: str) -> dict[str, int]:
    """Returns the bytes of an image's layers, compressed, by their digests."""
    with tempfile.TemporaryDirectory() as folder:
        run("buildah", "push", "--quiet", "--format", "oci", image, f"dir:{folder}")
        manifest = json.loads(Path(folder, "manifest.json").read_bytes())
    return {each["digest"]: each["size"] for each in manifest["layers"]}


def megabytes(size: int) -> str:
    """Returns a size as text."""
    return f"{size / 1e6:.0f} MB" if size < 999.5e6 else f"{size / 1e9:.2f} GB"


def run(*command: str) -> str:
    """Runs a command and returns what it prints; ends with a line if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"image_sizes: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout


if __name__ == "__main__":
    main()
