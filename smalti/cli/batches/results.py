"""The files of a batch of a gateway, fetched and verified into a folder or below an address of S3."""

import hashlib
import json
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from smalti.batches import SUCCESS_FILE, WORK, InputFormat, InputRecord
from smalti.cli.batches import remote
from smalti.cli.batches.inputs import open_input, sha256_of
from smalti.cli.batches.options import RunOptions
from smalti.cli.batches.places import FIELD, Keeper, RunPlace, open_place
from smalti.cli.batches.progress import batch_progress
from smalti.cli.batches.records import BATCH_FILE, check_empty, check_same, check_whole, load_summary
from smalti.entrance import signals
from smalti.errors import BatchNotFoundError, InvalidInputError
from smalti.validation import Strict

if TYPE_CHECKING:
    from smalti.client import Client
    from smalti.v1.batch_pb2 import Batch, BatchFile


class BatchRecord(Strict):
    """The batch whose files a place gets."""

    batch: str = ""
    """The id; empty as long as the gateway has not answered."""
    request_id: str = ""
    """What makes it safe to create the batch again; empty if another command has created it."""
    options: str = ""
    """SHA-256 of the input and of all options with which it was created."""


def run(client: "Client", options: RunOptions, out: str) -> "Batch | None":
    """Draws a batch at a gateway, and fetches its files; the same command goes on with it after an interruption.

    Args:
        client: the client.
        options: the options.
        out: where to write.

    Returns:
        The batch; None if everything was there before.

    Raises:
        SmaltiError: something cannot be used, the batch does not succeed, or the gateway does not answer.
    """
    from smalti.client import check_succeeded

    place = open_place(out)
    with (
        open_input(options.source, options.input_format) as source,
        place.opened({"input": source.path}) as keeper,
    ):
        input_record = source.record()
        record = _load(place)
        if record is None and _is_complete(place, options, source.format, input_record):
            return None
        digest = _digest(client.server, options, input_record)
        if record is None:
            check_empty(place)
            record = BatchRecord(request_id=str(uuid.uuid4()), options=digest)
        elif record.options != digest:
            raise InvalidInputError(
                FIELD,
                f"{place.label} has batch {record.batch or '(not answered yet)'} of another input or other options; "
                "give another place, or fetch it with `smalti batch results`",
            )
        else:
            keeper.keep()
        if not record.batch:

            def keep(before: BatchRecord = record) -> None:
                _save(place, before)
                keeper.keep()

            accepted = remote.submit(client, options, source, request_id=record.request_id, on_uploaded=keep)
            record = record.model_copy(update={"batch": accepted.id})
            _save(place, record)
        remote.say(record.batch)
        try:
            ended = remote.watch(client, record.batch)
            try:
                check_succeeded(ended)
            except BaseException:
                place.remove(BATCH_FILE)  # Another try begins anew.
                raise
            _fetch_all(client, record.batch, place)
        except BatchNotFoundError as error:
            raise InvalidInputError(
                FIELD, f"{place.label} has a run of which {error}; remove its {BATCH_FILE} to begin anew"
            ) from None
        return ended


def fetch(client: "Client", batch_id: str, out: str) -> int:
    """Fetches all files of a batch; those that are there already are not fetched again.

    Args:
        client: the client.
        batch_id: the batch.
        out: where to write.

    Returns:
        The number of files.

    Raises:
        SmaltiError: the place has something else, a file arrives damaged, or the gateway does not answer.
    """
    place = open_place(out)
    with place.opened({}) as keeper:
        record = _load(place)
        if record is not None and record.batch != batch_id:
            raise InvalidInputError(
                FIELD, f"{place.label} has files of batch {record.batch}, not {batch_id}; give another place"
            )
        return _fetch_all(client, batch_id, place, keeper)


def _fetch_all(client: "Client", batch_id: str, place: RunPlace, keeper: Keeper | None = None) -> int:
    files = list(client.batches.files(batch_id))
    # `_SUCCESS` comes last, as everywhere.
    files.sort(key=lambda file: file.name == SUCCESS_FILE)
    with place.scratch() as folder, batch_progress("Fetching") as progress:
        there = _names_there(place, batch_id, {file.name: file for file in files})
        if keeper is not None:
            _save(place, BatchRecord(batch=batch_id))
            keeper.keep()
        for number, file in enumerate(files):
            progress.show("Fetching", number, len(files))
            if file.name not in there:
                _fetch(client, batch_id, file, place, folder)
    place.remove(BATCH_FILE)
    return len(files)


def _names_there(place: RunPlace, batch_id: str, files: "dict[str, BatchFile]") -> set[str]:
    """Returns the names of the files that are there; raises `InvalidInputError` if a place has others."""
    there = set()
    for name in place.names():
        if name.startswith(WORK):
            continue
        if name not in files or not _is_same(place, files[name]):
            raise InvalidInputError(
                FIELD, f"{place.label} has {name}, which is not of batch {batch_id}; give another place"
            )
        there.add(name)
    return there


def _fetch(client: "Client", batch_id: str, file: "BatchFile", place: RunPlace, folder: Path) -> None:
    path = folder / "file"
    with path.open("wb") as made:
        for piece in client.batches.read(batch_id, file):
            made.write(piece)
            signals.check()
    place.take_file(file.name, path, "application/octet-stream")


def _is_same(place: RunPlace, file: "BatchFile") -> bool:
    with place.open(file.name) as there:
        return sha256_of(there) == file.sha256


def _is_complete(
    place: RunPlace, options: RunOptions, input_format: InputFormat, input_record: InputRecord
) -> bool:
    """Returns whether a place has the whole output of a run.

    Raises:
        InvalidInputError: it has that of another run, as far as the options say; the rest is the gateway's.
    """
    if place.get(SUCCESS_FILE) is None or (summary := load_summary(place)) is None:
        return False
    before, second_pass = summary.parameters, summary.parameters.second_pass
    there = {
        "input": summary.input.sha256,
        "format of the input": summary.input.format.value,
        "model": summary.model,
        "revision": " ".join(summary.revisions),
        "seed": before.seed,
        "n": before.n,
        "candidates": before.candidates,
        **before.sampling.model_dump(),
        "vary": before.vary,
        "diversity": before.diversity,
        "refine": second_pass is not None and second_pass.refine is not None,
        "upscale": second_pass and second_pass.upscale,
        "picture format": summary.picture_format.value,
        "prompts in a shard": summary.shard_prompts,
    }
    wanted = {
        **{name: value for name, value in options.shared_request().items() if value is not None},
        "input": input_record.sha256,
        "format of the input": input_format.value,
        "seed": options.seed or 0,
        "n": options.n,
        "candidates": options.candidates,
        "refine": bool(options.refine),
        "picture format": options.picture_format.value,
        "prompts in a shard": options.shard_prompts,
    }
    check_same(place, {name: there[name] for name in there if name in wanted}, wanted)
    check_whole(place, summary)
    return True


def _load(place: RunPlace) -> BatchRecord | None:
    content = place.get(BATCH_FILE)
    if content is None:
        return None
    try:
        return BatchRecord.model_validate_json(content)
    except ValidationError:
        raise InvalidInputError(
            FIELD, f"{place.label} has a {BATCH_FILE} that cannot be read; give another place, or remove it"
        ) from None


def _save(place: RunPlace, record: BatchRecord) -> None:
    place.put(BATCH_FILE, record.model_dump_json().encode(), "application/json")


def _digest(server: str, options: RunOptions, input_record: InputRecord) -> str:
    given = {
        **options.request(),
        "refine": repr(options.refine),
        "server": server,
        "input": input_record.model_dump(mode="json"),
    }
    return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()
