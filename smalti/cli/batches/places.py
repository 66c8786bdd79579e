"""Where a batch is written to: a folder, or below an address of S3."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from smalti.batches import WORK, FolderPlace, OutputPlace, StorePlace
from smalti.cli.batches.leases import LEASES, StoreLease
from smalti.cli.extras import needs_extra
from smalti.entrance import signals
from smalti.errors import InvalidInputError, MissingObjectError, SmaltiError
from smalti.files import atomic_path
from smalti.outputs import MARK_FILE, open_folder
from smalti.storage import S3_SCHEME, ObjectStore, open_address

FIELD: Final = "out"
SCRATCH: Final = f"{WORK}scratch/"
"""Where files of a run are made, on the disk of the output."""
BYTES: Final = "application/octet-stream"
_HALF_WRITTEN: Final = ".*.partial"
_CLUTTER: Final = frozenset({".DS_Store", "Thumbs.db", "desktop.ini", "lost+found", MARK_FILE})


class Keeper(Protocol):
    """What is written is kept from now on, even if the block fails."""

    def keep(self) -> None:
        """See `smalti.outputs.OpenFolder`."""
        ...


class RunPlace(OutputPlace, Protocol):
    """Where a run writes; raises `SmaltiError` if it cannot."""

    label: str
    """The place as the user named it."""

    def get(self, name: str) -> bytes | None:
        """Returns the content of a file, or None if there is none."""
        ...

    def names(self, prefix: str = "") -> Iterator[str]:
        """Yields the names of the files that begin with a prefix, as they are found."""
        ...

    def remove(self, *names: str) -> None:
        """Removes files; missing ones are ignored."""
        ...

    def tidy(self) -> None:
        """Removes what a process of the same run has left that was killed while it wrote."""
        ...

    def remove_work(self, last: str) -> None:
        """Removes all of `_work/`, and the file `last` after everything else."""
        ...

    def take_file(self, name: str, path: Path, content_type: str) -> None:
        """Writes or replaces a file with one that was made in `scratch`, and is gone afterwards."""
        ...

    def opened(self, inputs: Mapping[str, str | Path | None]) -> AbstractContextManager[Keeper]:
        """Opens the place for this run alone; if the block fails before `keep`, nothing of it stays."""
        ...

    def scratch(self) -> AbstractContextManager[Path]:
        """Yields a folder of this machine for files that are being made; needs the place to be open."""
        ...


class FolderRun(FolderPlace):
    """A folder; a `RunPlace`."""

    def __init__(self, folder: Path) -> None:
        """Creates the folder when it is opened."""
        super().__init__(folder)
        self.label = str(folder)

    def get(self, name: str) -> bytes | None:  # noqa: D102
        try:
            return (self.folder / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def put(self, name: str, content: bytes, content_type: str = BYTES) -> None:  # noqa: D102
        with atomic_path(self._made(name)) as partial, partial.open("xb") as file:
            file.write(content)
            _flush(file)

    def names(self, prefix: str = "") -> Iterator[str]:  # noqa: D102
        for folder, folders, names in os.walk(self.folder / prefix.rpartition("/")[0]):
            folders.sort()
            signals.check()
            for each in sorted(names):
                # Those that begin with a dot are not whole yet: a process was killed while it wrote them.
                if each in _CLUTTER or each.startswith("."):
                    continue
                name = (Path(folder) / each).relative_to(self.folder).as_posix()
                if name.startswith(prefix):
                    yield name

    def remove(self, *names: str) -> None:  # noqa: D102
        for name in names:
            path = self.folder / name
            path.unlink(missing_ok=True)
            self._remove_empty(path.parent)

    def remove_work(self, last: str) -> None:  # noqa: D102
        work = self.folder / WORK
        for path in work.iterdir() if work.is_dir() else ():
            if path.is_dir():
                shutil.rmtree(path)
            elif path != self.folder / last:
                path.unlink()
        self.remove(last)

    def take_file(self, name: str, path: Path, content_type: str) -> None:  # noqa: D102
        target = self._made(name)
        # The results that name this file are written afterwards: after a loss of power, they must not be there alone.
        with path.open("rb") as file:
            _flush(file)
        path.replace(target)

    def opened(self, inputs: Mapping[str, str | Path | None]) -> AbstractContextManager[Keeper]:  # noqa: D102
        return open_folder(self.folder, inputs=inputs, field=FIELD, undone=(WORK.rstrip("/"),))

    def tidy(self) -> None:  # noqa: D102
        for path in (*self.folder.glob(_HALF_WRITTEN), *self.folder.glob(f"manifest/{_HALF_WRITTEN}")):
            path.unlink()

    @contextmanager
    def scratch(self) -> Iterator[Path]:  # noqa: D102
        path = self.folder / SCRATCH
        path.mkdir(parents=True, exist_ok=True)
        _empty(path)
        try:
            yield path
        finally:
            _empty(path)
            self._remove_empty(path)

    def _remove_empty(self, folder: Path) -> None:
        """Removes a folder below the place, and those above it, as far as they are empty."""
        for each in (folder, *folder.parents):
            if each == self.folder or not each.is_relative_to(self.folder):
                return
            try:
                each.rmdir()
            except OSError:
                return


class StoreRun(StorePlace):
    """Objects below a prefix; a `RunPlace`."""

    def __init__(self, store: ObjectStore, prefix: str, label: str) -> None:
        """Takes the store, the prefix, which is empty or ends with "/", and the address as the user named it."""
        super().__init__(store, prefix)
        self.label = label
        self._lease = StoreLease(store, prefix, label)

    def get(self, name: str) -> bytes | None:  # noqa: D102
        try:
            return self.store.get(self.prefix + name)
        except MissingObjectError:
            return None

    def names(self, prefix: str = "") -> Iterator[str]:  # noqa: D102
        for info in self.store.objects(self.prefix + prefix):
            signals.check()
            yield info.key.removeprefix(self.prefix)

    def remove(self, *names: str) -> None:  # noqa: D102
        if names:
            self.store.delete(*(self.prefix + name for name in names))

    def tidy(self) -> None:
        """Does nothing: an object is there whole, or not at all."""

    def remove_work(self, last: str) -> None:  # noqa: D102
        # The lease is removed when the place is closed.
        kept = (last, LEASES)
        self.remove(*(name for name in self.names(WORK) if not name.startswith(kept)))
        self.remove(last)

    def take_file(self, name: str, path: Path, content_type: str) -> None:  # noqa: D102
        self._lease.check()
        self.put_file(name, path, content_type)
        path.unlink()

    @contextmanager
    def opened(self, inputs: Mapping[str, str | Path | None]) -> Iterator[Keeper]:  # noqa: D102
        with self._lease.held():
            kept = _Kept()
            before = set(self.names(WORK))
            try:
                yield kept
            except BaseException as error:
                if not kept.kept:
                    self.remove(*(name for name in self.names(WORK) if name not in before))
                if isinstance(error, OSError) and not isinstance(error, ConnectionError):
                    # Of the disk of this machine, on which files are made.
                    raise SmaltiError(f"{self.label} cannot be written: {error.strerror or error}") from error
                raise

    @contextmanager
    def scratch(self) -> Iterator[Path]:  # noqa: D102
        with tempfile.TemporaryDirectory(prefix="smalti-batch-") as folder:
            yield Path(folder)


class _Kept:
    kept = False

    def keep(self) -> None:
        self.kept = True


def open_place(out: str) -> FolderRun | StoreRun:
    """Returns the place that the user names, without writing anything.

    Raises:
        InvalidInputError: the address cannot be used.
    """
    if not out.startswith(S3_SCHEME):
        if "://" in out:
            raise InvalidInputError(FIELD, f"must be a folder, or s3://BUCKET/PREFIX, got {out!r:.120}")
        return FolderRun(Path(out))
    with needs_extra("service"):
        store, key = open_address(out, FIELD)
    return StoreRun(store, f"{key}/" if key else "", out)


def _flush(file: BinaryIO) -> None:
    """Waits until a file is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink(missing_ok=True)
