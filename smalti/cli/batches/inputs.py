"""The input of a batch: a file, standard input, or an object of an S3 store."""

import hashlib
import os
import select
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from smalti.batches import InputFormat, InputRecord, format_of
from smalti.cli.extras import needs_extra
from smalti.entrance import signals
from smalti.errors import InvalidInputError, MissingObjectError, SmaltiError
from smalti.storage import S3_SCHEME, open_address

FIELD: Final = "input"
STANDARD_INPUT: Final = "-"
_PART: Final = 1 << 20
_POLL_SECONDS: Final = 0.2


@dataclass(frozen=True, kw_only=True)
class Input:
    """An input that can be read again and again."""

    name: str
    """Its name without folders; "-" for standard input."""
    format: InputFormat
    open: Callable[[], BinaryIO]
    """Opens it at its beginning, seekable."""
    state: Callable[[], object]
    """Returns something that is equal as long as the input is not changed."""
    path: Path | None = None
    """Where it is on this machine; None for an object of a store."""

    def record(self) -> InputRecord:
        """Returns what is recorded of the input; reads it once."""
        with self.open() as file:
            return InputRecord(name=self.name, sha256=sha256_of(file), format=self.format)


def sha256_of(file: BinaryIO) -> str:
    """Returns the SHA-256 of the rest of a file; a signal ends it."""
    hashed = hashlib.sha256()
    while part := file.read(_PART):
        hashed.update(part)
        signals.check()
    return hashed.hexdigest()


@contextmanager
def open_input(source: str, input_format: str | None) -> Iterator[Input]:
    """Yields the input that the user names.

    Args:
        source: a path, "-" for standard input, or an address of S3.
        input_format: the format; None for that of the name's ending, which is text for standard input.

    Raises:
        InvalidInputError: the input cannot be read, or its format is not known.
    """
    if source.startswith(S3_SCHEME):
        yield _object(source, input_format)
        return
    path = Path(source)
    if source == STANDARD_INPUT:
        found = InputFormat.TEXT if input_format is None else InputFormat(input_format)
        with _spooled(sys.stdin.buffer) as copy:
            yield _file(copy, STANDARD_INPUT, found)
        return
    if path.is_dir():
        raise InvalidInputError(FIELD, f"{path} is a folder, not a file")
    found = _format(path.name, input_format)
    with _reported(path):
        if path.exists() and not path.is_file():  # A pipe can be read once.
            with path.open("rb") as pipe, _spooled(pipe) as copy:
                yield _file(copy, path.name, found)
            return
        with path.open("rb"):
            pass
    yield _file(path, path.name, found)


def _file(path: Path, name: str, input_format: InputFormat) -> Input:
    def state() -> object:
        status = path.stat()
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns

    return Input(name=name, format=input_format, open=lambda: path.open("rb"), state=state, path=path)


def _object(address: str, input_format: str | None) -> Input:
    with needs_extra("service"):
        store, key = open_address(address, FIELD)
    found = _format(key, input_format)
    if store.stat(key) is None:
        raise InvalidInputError(FIELD, f"there is no object {address}")

    def state() -> object:
        info = store.stat(key)
        return info and (info.size, info.modified)

    def opened() -> BinaryIO:
        try:
            return store.open_object(key)
        except MissingObjectError:
            raise InvalidInputError(FIELD, f"there is no object {address} any more") from None

    return Input(name=key.rpartition("/")[2], format=found, open=opened, state=state)


def _format(name: str, input_format: str | None) -> InputFormat:
    return format_of(name) if input_format is None else InputFormat(input_format)


@contextmanager
def _spooled(source: BinaryIO) -> Iterator[Path]:
    """Yields a copy of what can be read once only."""
    with tempfile.TemporaryDirectory(prefix="smalti-input-") as folder:
        copy = Path(folder) / "input"
        try:
            with copy.open("wb") as file:
                while part := _read_some(source):
                    file.write(part)
                    signals.check()
        except OSError as error:
            raise SmaltiError(f"{FIELD}: cannot be copied to {folder} ({error.strerror})") from None
        yield copy


def _read_some(source: BinaryIO) -> bytes:
    # A terminal, or another program, may be silent for long.
    while not select.select([source], [], [], _POLL_SECONDS)[0]:
        signals.check()
    return os.read(source.fileno(), _PART)


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InvalidInputError(FIELD, f"{path}: cannot be read ({error.strerror})") from None


def copied(source: Input, folder: Path) -> Path:
    """Returns the path of an input on this machine, copied there if it is in a store."""
    if source.path is not None and source.path.name == source.name:
        return source.path
    name = f"input.{_ENDINGS[source.format]}" if source.name == STANDARD_INPUT else source.name
    path = folder / name
    with source.open() as file, path.open("wb") as copy:
        shutil.copyfileobj(file, copy, _PART)
    return path


_ENDINGS: Final = {
    InputFormat.TEXT: "txt",
    InputFormat.JSONL: "jsonl",
    InputFormat.CSV: "csv",
    InputFormat.PARQUET: "parquet",
    InputFormat.OPENAI: "jsonl",
}
