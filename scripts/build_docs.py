"""Builds the documentation site from the repository's Markdown files into `build/site`; a warning is an error.

The pages are those of `docs/`, and the Markdown files that stand elsewhere in the repository, such as this project's
README. `build/docs` gets a copy of each, at its place in the site and with its links adjusted, so that every text is
written once and its links work both in the repository and on the site. `zensical.toml` has the navigation.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
STAGED = ROOT / "build" / "docs"
SITE = ROOT / "build" / "site"
# Paths in the site of files outside `docs/`.
ELSEWHERE = {
    ROOT / "README.md": "index.md",
    ROOT / "CHANGELOG.md": "changelog.md",
    ROOT / "CONTRIBUTING.md": "contributing.md",
    ROOT / "LICENSE": "license.txt",
    ROOT / "SECURITY.md": "security-policy.md",
    ROOT / "deploy" / "helm" / "smalti" / "README.md": "chart.md",
    ROOT / "protos" / "README.md": "contract.md",
    ROOT / "smalti" / "assets" / "pictograms" / "README.md": "model-card.md",
    ROOT / "smalti" / "assets" / "pictograms" / "samples.png": "pictures/samples.png",
}
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=[)#])")


def site_paths() -> dict[Path, str]:
    """Returns the path in the site of each file that belongs to it."""
    files = (path for path in DOCS.rglob("*") if path.is_file())
    return {path: path.relative_to(DOCS).as_posix() for path in files} | ELSEWHERE


def adjusted(source: Path, text: str, files: dict[Path, str]) -> str:
    """Returns a page's text with its relative links adjusted to the paths in the site."""
    folder = Path(files[source]).parent

    def target(match: re.Match[str]) -> str:
        place = files.get((source.parent / match[1]).resolve())
        return match[1] if place is None else Path(os.path.relpath(place, folder)).as_posix()

    return LINK.sub(target, text)


def stage() -> None:
    """Fills `build/docs`."""
    shutil.rmtree(STAGED, ignore_errors=True)
    files = site_paths()
    for source, place in files.items():
        staged = STAGED / place
        staged.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix == ".md":
            staged.write_text(adjusted(source, source.read_text(encoding="utf-8"), files), encoding="utf-8")
        else:
            shutil.copyfile(source, staged)


def main() -> int:
    """Builds the site; the exit status is 1 when there was a warning."""
    stage()
    shutil.rmtree(SITE, ignore_errors=True)
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict", "--clean"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    print(done.stdout, end="")
    # What griffe finds wrong with a docstring does not count for Zensical's `--strict`.
    return 1 if done.returncode or re.search("^(griffe|mkdocstrings): ", done.stdout, re.MULTILINE) else 0


if __name__ == "__main__":
    sys.exit(main())
