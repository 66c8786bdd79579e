"""The mark in a folder that a command has written: it lists the files, which are all that may be removed again."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from smalti.files import write_atomically

MARK_FILE: Final = ".smalti-output"
LOCK_FILE: Final = ".smalti-lock"
"""The lock of a folder whose parent cannot be written."""
PARTIAL_FOLDER: Final = ".smalti-partial"
"""Where a folder is made that cannot be made beside its place."""
CLUTTER: Final = frozenset({".DS_Store", "Thumbs.db", "desktop.ini", "lost+found", LOCK_FILE, PARTIAL_FOLDER})
"""What systems, and an interrupted command, leave in folders. A folder with nothing else counts as empty."""


def contents(folder: Path) -> list[Path]:
    """Returns what a folder has, without clutter."""
    return [path for path in folder.iterdir() if path.name not in CLUTTER]


def files_in(folder: Path) -> set[str]:
    """Returns the paths of all files below a folder, links included, without clutter and the mark."""
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    relative = (path.relative_to(folder) for path in found)
    return {
        path.as_posix()
        for path in relative
        if path.name not in CLUTTER | {MARK_FILE} and PARTIAL_FOLDER not in path.parts
    }


def write_mark(folder: Path, files: Iterable[str]) -> None:
    """Marks a folder as written by this program; equal files give an equal mark."""
    # ASCII, so that a name that is not valid Unicode can be written too.
    write_atomically(folder / MARK_FILE, json.dumps({"files": sorted(files)}, indent=1) + "\n")


def marked_files(folder: Path) -> set[str] | None:
    """Returns the files that the mark of a folder lists; None without a mark, or if it cannot be read."""
    try:
        return {str(name) for name in json.loads((folder / MARK_FILE).read_bytes())["files"]}
    except (OSError, ValueError, RecursionError, TypeError, KeyError):
        return None


def remove_marked(folder: Path) -> None:
    """Removes the files that a mark lists, the mark, and the folders that are empty then; all else stays."""
    for name in files_in(folder) & (marked_files(folder) or set()):
        (folder / name).unlink(missing_ok=True)
    (folder / MARK_FILE).unlink(missing_ok=True)
    for inner in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
        if not inner.is_symlink() and not any(inner.iterdir()):
            inner.rmdir()
