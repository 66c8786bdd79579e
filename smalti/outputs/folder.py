"""Folders that commands write: made whole and moved into place, or opened to add files to them."""

import errno
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Final

from smalti.errors import InvalidInputError, SmaltiError
from smalti.outputs.apart import Inputs, check_apart, real_path
from smalti.outputs.lock import locked
from smalti.outputs.mark import (
    LOCK_FILE,
    MARK_FILE,
    PARTIAL_FOLDER,
    contents,
    files_in,
    marked_files,
    remove_marked,
    write_mark,
)

_FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class OpenFolder:
    """A folder that is open to add files to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kept = False

    def keep(self) -> None:
        """Keeps from now on what the block has added, even if it fails."""
        self.kept = True


def check_folder(
    folder: Path,
    *,
    inputs: Inputs = {},  # noqa: B006
    overwrite: bool | None = None,
    field: str = "out",
) -> None:
    """Checks, without writing anything, that `whole_folder` can make a folder; for commands with other work before.

    Args:
        folder: the folder to make.
        inputs: what the command reads.
        overwrite: whether a folder that this program wrote may be replaced; None if the command has no such option.
        field: the argument that names the folder, for errors.

    Raises:
        InvalidInputError: the folder is not apart from an input, is a file, is not empty, may not be replaced, or
            cannot be written.
    """
    with _reported(folder):
        _check_place(folder, inputs, field, may_hold_inputs=False)
        _check_content(folder, overwrite, field)


@contextmanager
def whole_folder(
    folder: Path,
    *,
    inputs: Inputs = {},  # noqa: B006
    overwrite: bool | None = None,
    field: str = "out",
) -> Iterator[Path]:
    """Yields an empty folder that takes the place of `folder` if the block succeeds, and is removed otherwise.

    The work is done beside the folder, which is then renamed. Where that cannot be (a mounted folder, the current one,
    or one whose parent cannot be written), it is done in a hidden folder inside, whose content is moved at the end.

    Args:
        folder: the final path; may be a link to a folder.
        inputs: what the command reads.
        overwrite: whether a folder that this program wrote may be replaced; None if the command has no such option.
        field: the argument that names the folder, for errors.

    Raises:
        InvalidInputError: as `check_folder`, or another process writes to the folder.
        SmaltiError: a file cannot be read or written, or the disk is full.
    """
    check_folder(folder, inputs=inputs, overwrite=overwrite, field=field)
    place = real_path(folder)
    inside = _parent_is_closed(place) or place.is_mount() or _is_current(place)
    partial = place / PARTIAL_FOLDER if inside else place.with_name(f".{place.name}.smalti-partial")
    with _reported(folder), _made(place if inside else place.parent), _locked(place, folder, field):
        _undo_interrupted(place, partial)
        _check_content(folder, overwrite, field)
        try:
            partial.mkdir()
            write_mark(partial, ())
            yield partial
            write_mark(partial, files_in(partial))
            _check_content(folder, overwrite, field)
            (_move_inside if inside else _take_place)(partial, place)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def open_folder(
    folder: Path,
    *,
    inputs: Inputs = {},  # noqa: B006
    field: str = "out",
    exclusive: bool = True,
    may_hold_inputs: bool = True,
    undone: Collection[str] = (),
) -> Iterator[OpenFolder]:
    """Makes a folder if there is none, and opens it to add files to it.

    If the block fails, and does not call `keep`, the folders that were made are removed if they are empty.

    Args:
        folder: the folder; may be a link to one.
        inputs: what the command reads.
        field: the argument that names the folder, for errors.
        exclusive: whether others are kept out meanwhile; not needed if every file is created under a name of its own.
        may_hold_inputs: whether an input may be below the folder.
        undone: names in the folder that are removed if the block fails, unless they were there before.

    Raises:
        InvalidInputError: the folder is not apart from an input, is a file, cannot be written, or another process
            writes to it.
        SmaltiError: a file cannot be read or written, or the disk is full.
    """
    with _reported(folder):
        _check_place(folder, inputs, field, may_hold_inputs=may_hold_inputs)
    place = real_path(folder)
    with (
        _reported(folder),
        _made(place),
        _locked(place, folder, field) if exclusive else nullcontext(),
    ):
        listed = marked_files(place)
        before = set() if listed is None else files_in(place)
        there = {name for name in undone if os.path.lexists(place / name)}
        opened = OpenFolder(folder)
        try:
            yield opened
        except BaseException:
            if not opened.kept:
                for name in set(undone) - there:
                    _remove(place / name)
            raise
        finally:
            if listed is not None:
                write_mark(place, listed | (files_in(place) - before))


def check_file(file: Path, *, inputs: Inputs = {}, field: str = "out") -> None:  # noqa: B006
    """Checks before the work that a command can write a file.

    Raises:
        InvalidInputError: the file is an input or lies in one, is a folder, or cannot be written.
    """
    if file.is_dir():
        raise InvalidInputError(field, f"{file} is a folder, not a file")
    _check_place(file.parent, {}, field, may_hold_inputs=True)
    check_apart(file, inputs, field, may_hold_inputs=True)
    if not file.parent.is_dir():
        raise InvalidInputError(field, f"{file}: there is no folder {file.parent}")


def _check_place(folder: Path, inputs: Inputs, field: str, *, may_hold_inputs: bool) -> None:
    """Raises `InvalidInputError` if nothing can be written at a path, or if it is not apart from an input."""
    place = real_path(folder)
    if os.path.lexists(place) and not place.is_dir():
        raise InvalidInputError(field, f"{folder} is a file, not a folder")
    check_apart(folder, inputs, field, may_hold_inputs=may_hold_inputs)
    above = next(each for each in (place, *place.parents) if os.path.lexists(each))
    if not above.is_dir():
        raise InvalidInputError(field, f"{folder} cannot be made, since {above} is a file")
    if not os.access(above, os.W_OK | os.X_OK):
        problem = "the file system is read-only" if _is_read_only(above) else "the permission is missing"
        raise InvalidInputError(field, f"{folder} cannot be written: {problem} ({above})")


def _check_content(folder: Path, overwrite: bool | None, field: str) -> None:
    """Raises `InvalidInputError` if a folder has files that may not be replaced."""
    place = real_path(folder)
    if not place.is_dir() or not contents(place):
        return
    if not overwrite:
        instead = "give another folder" if overwrite is None else "give another folder, or --overwrite"
        raise InvalidInputError(field, f"{folder} is not empty; {instead}")
    listed = marked_files(place)
    if listed is None:
        raise InvalidInputError(
            field,
            f"{folder} was not written by Smalti (it has no {MARK_FILE}), so --overwrite leaves it alone; "
            "remove it yourself, or give another folder",
        )
    if foreign := sorted(files_in(place) - listed):
        raise InvalidInputError(
            field,
            f"{folder} has files that Smalti did not write, such as {foreign[0]}; move them away, or give another "
            "folder",
        )


def _locked(place: Path, out: Path, field: str) -> AbstractContextManager[None]:
    """Locks a folder, beside it unless its parent cannot be written."""
    inside = _parent_is_closed(place)
    file = place / LOCK_FILE if inside else place.with_name(f".{place.name}.smalti-lock")
    return locked(file, out, field)


def _parent_is_closed(place: Path) -> bool:
    return place.is_dir() and not os.access(place.parent, os.W_OK | os.X_OK)


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Makes a folder and those above it; if the block fails, those that are empty are removed again."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for each in missing:
            with suppress(OSError):
                each.rmdir()
        raise


@contextmanager
def _reported(folder: Path) -> Iterator[None]:
    """Turns an error of the file system into one line."""
    try:
        yield
    except ConnectionError:  # Of a stream or a server, never of a file.
        raise
    except shutil.Error as error:  # Of a copied folder: what failed, from where to where.
        raise SmaltiError(f"{folder} cannot be written: {error.args[0][0][2]}") from error
    except OSError as error:
        problem = "the disk is full" if error.errno in _FULL else (error.strerror or str(error))
        named = error.filename if isinstance(error.filename, str) else None
        if named is None or _belongs_to(real_path(folder), real_path(Path(named))):
            raise SmaltiError(f"{folder} cannot be written: {problem}") from error
        raise SmaltiError(f"{named}: {problem}") from error


def _belongs_to(place: Path, file: Path) -> bool:
    """Returns whether a file is in a folder, in the one that will take its place, or above it."""
    hidden = f".{place.name}."
    beside = any(
        each.parent == place.parent and each.name.startswith(hidden) for each in (file, *file.parents)
    )
    return beside or file.is_relative_to(place) or place.is_relative_to(file)


def _is_current(place: Path) -> bool:
    """Returns whether a folder is the current one, which a renaming would take from under the user's shell."""
    with suppress(OSError):
        return place.samefile(Path.cwd())
    return False


def _undo_interrupted(place: Path, partial: Path) -> None:
    """Cleans up after a process that was killed; the lock is held, so it is not at work any more."""
    if marked_files(partial) is not None:
        shutil.rmtree(partial, ignore_errors=True)
    old = _old(place)
    if marked_files(old) is None:
        return
    if place.exists():
        _remove_old(old)
    else:
        old.rename(place)


def _take_place(partial: Path, place: Path) -> None:
    """Renames a finished folder; what was there is moved aside before, and back if the renaming fails."""
    if not place.exists():
        partial.rename(place)
        return
    shutil.copymode(place, partial)
    if not any(place.iterdir()):
        partial.rename(place)
        return
    old = _old(place)
    place.rename(old)
    try:
        partial.rename(place)
    except BaseException:
        old.rename(place)
        raise
    _remove_old(old)


def _move_inside(partial: Path, place: Path) -> None:
    """Moves what a finished folder has into the folder around it."""
    remove_marked(place)
    for path in sorted(partial.iterdir(), key=lambda path: path.name == MARK_FILE):
        path.rename(place / path.name)


def _old(place: Path) -> Path:
    return place.with_name(f".{place.name}.smalti-old")


def _remove_old(old: Path) -> None:
    remove_marked(old)
    if not contents(old):
        shutil.rmtree(old, ignore_errors=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _is_read_only(folder: Path) -> bool:
    return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
