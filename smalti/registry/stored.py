"""Models in an object store: each file under its SHA-256, and each `model.json` under its own, which names the model.

* `files/<SHA-256>`: a file of one or several models
* `models/<SHA-256>.json`: the `model.json` of a model, which lists its files
"""

import shutil
from pathlib import Path
from typing import Any, Final

from smalti.errors import InvalidInputError, MissingObjectError, ModelError
from smalti.files import link_or_copy
from smalti.foreign_text import parse_json
from smalti.outputs import open_folder, whole_folder
from smalti.registry.folder import ModelFolder, sha256_of
from smalti.registry.importing import choose_folder, folder_for, raise_first
from smalti.registry.manifest import MANIFEST_FILE, FileRecord, check_name, parse_manifest, write_manifest
from smalti.registry.verify import find_file_problems, find_problems
from smalti.storage import ObjectStore, digest

PIECE_BYTES: Final = 16 * 2**20
"""Bytes of a file that are held in memory, and asked for in one call."""


def push_model(folder: ModelFolder, store: ObjectStore, prefix: str) -> tuple[str, int]:
    """Copies a model into a store; files that are there already are not sent again.

    Args:
        folder: the model.
        store: the store.
        prefix: what the keys begin with; empty, or ending with "/".

    Returns:
        The SHA-256 of its `model.json`, by which it can be pulled, and the bytes that were sent.

    Raises:
        ModelError: the model is damaged.
        StorageError: the store does not answer, or refuses.
    """
    raise_first(find_problems(folder))
    sent = 0
    for file, record in folder.manifest.files.items():
        key = _file_key(prefix, record.sha256)
        there = store.stat(key)
        if there is None or (there.size, there.sha256) != (record.size, record.sha256):
            store.put_file(key, folder.path / file)
            sent += record.size
    # Last, so that whoever finds it finds the files too.
    content = (folder.path / MANIFEST_FILE).read_bytes()
    sha256 = digest(content)
    store.put(_manifest_key(prefix, sha256), content, content_type="application/json")
    return sha256, sent


def pull_stored(
    store: ObjectStore, prefix: str, sha256: str, *, name: str | None = None, out: Path | None = None
) -> tuple[ModelFolder, int]:
    """Makes a model folder from what `push_model` has stored, completely or not at all.

    Every file is compared with its SHA-256. What was received stays beside the folder until it is complete, so that an
    interrupted pull goes on where it stopped. A folder that holds the model already is checked and left as it is.

    Args:
        store: the store.
        prefix: what the keys begin with; empty, or ending with "/".
        sha256: the SHA-256 of the model's `model.json`.
        name: name of the model; by default that in `model.json`.
        out: the folder to make; by default one with this name among the user's models.

    Returns:
        The model, and the bytes of its files that were received.

    Raises:
        InvalidInputError: the name is invalid, or the folder cannot be used.
        ModelError: the store does not have the model, or a file is damaged, there or here.
        SmaltiError: the store does not answer, or a file cannot be written.
    """
    key = _manifest_key(prefix, sha256)
    try:
        content = store.get(key, sha256=sha256)
    except MissingObjectError:
        raise ModelError(
            f"sha256: the store has no model {sha256} (no object {key}); `smalti push` stores one"
        ) from None
    fields = parse_json(content, key)
    manifest = parse_manifest(Path(key), fields)
    name = name or manifest.name
    check_name(name)
    fields |= {"name": name}
    place = folder_for(name, out)
    if (place / MANIFEST_FILE).is_file() and _manifest_of(place) == fields:
        folder = ModelFolder.open(place)
        for problem in find_file_problems(folder):
            raise ModelError(f"{problem}; remove {place}, and pull it again")
        return folder, 0
    place = choose_folder(name, out)
    records = {record.sha256: record for record in manifest.files.values()}
    received = place.with_name(f".{place.name}.smalti-pull")
    with open_folder(received) as opened:
        opened.keep()
        count = _receive(store, prefix, records, received)
        with whole_folder(place) as temporary:
            for file, record in manifest.files.items():
                (temporary / file).parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(received / record.sha256, temporary / file)
            write_manifest(temporary, fields)
            ModelFolder.open(temporary)
    shutil.rmtree(received, ignore_errors=True)
    return ModelFolder.open(place), count


def _receive(store: ObjectStore, prefix: str, records: dict[str, FileRecord], folder: Path) -> int:
    """Completes files named by their SHA-256; returns the bytes that were received."""
    missing = sum(record.size - _size(folder / sha256) for sha256, record in records.items())
    if missing > (free := shutil.disk_usage(folder).free):
        raise InvalidInputError(
            "out", f"{folder.parent} has {free:,} bytes free, but the model needs {missing:,}"
        )
    for sha256, record in records.items():
        _complete(store, _file_key(prefix, sha256), record, folder / sha256)
    return missing


def _complete(store: ObjectStore, key: str, record: FileRecord, path: Path) -> None:
    with path.open("ab") as file:
        while (start := file.tell()) < record.size:
            try:
                piece = store.read(key, start, min(PIECE_BYTES, record.size - start))
            except MissingObjectError as error:
                raise ModelError(f"{error}, which the model needs; push the model again") from None
            if not piece:
                break
            file.write(piece)
    if path.stat().st_size != record.size or sha256_of(path) != record.sha256:
        # What was kept of an earlier pull may be what is damaged.
        path.unlink()
        raise ModelError(f"{key}: does not have the SHA-256 of its name; pull again, or push the model again")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _manifest_of(folder: Path) -> Any:
    return parse_json((folder / MANIFEST_FILE).read_bytes(), str(folder / MANIFEST_FILE))


def _file_key(prefix: str, sha256: str) -> str:
    return f"{prefix}files/{sha256}"


def _manifest_key(prefix: str, sha256: str) -> str:
    return f"{prefix}models/{sha256}.json"
