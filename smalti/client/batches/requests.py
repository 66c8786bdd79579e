"""Arguments of the methods for batches and files as requests of the gRPC contract."""

import uuid
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, TypedDict

from smalti.client.batches.uploads import Source
from smalti.client.requests import (
    RequestOptions,
    check_options,
    enum_value,
    fill,
    fill_field,
    request_fields,
    set_seconds,
)
from smalti.errors import InvalidInputError
from smalti.v1.batch_pb2 import (
    BatchFormat,
    BatchState,
    CreateBatchRequest,
    ListBatchesRequest,
    PictureFormat,
)
from smalti.v1.file_pb2 import File, FileStart

PURPOSE: Final = "batch"
"""What a file is for that is uploaded as the input of a batch."""


class BatchInputOptions(TypedDict, total=False):
    """How the input of a batch is read."""

    format: str | None
    """"text", "jsonl", "csv", "parquet" or "openai"; the default is by the ending of the file's name."""
    columns: Mapping[str, str] | None
    """Columns that have another name in the input, such as {"prompt": "caption"}."""
    ignore_columns: bool | None
    """Whether columns without a meaning are ignored; otherwise they are an error."""
    skip_invalid: bool | None
    """Whether rows that cannot be used are left out, and told in the manifest; otherwise the first ends the batch."""


class BatchOptions(RequestOptions, BatchInputOptions, total=False):
    """Options of a batch, with those of `RequestOptions` and `BatchInputOptions`; rows may say otherwise.

    The ranges are those of the contract (`ImageParameters`, `SamplingParameters`, `CreateBatchRequest`).
    """

    name: str | None
    """A name of the user's choice."""
    picture_format: str | None
    """"png" or "webp"; the default is "png"."""
    shard_prompts: int | None
    """Prompts in a shard, which is a file of pictures; the default is 256."""
    rank: int | None
    """Batches with a higher rank are drawn first; from 0, the default, to 100."""
    slots: int | None
    """The candidates of the batch that may be generated at the same time; the default is no limit."""
    validate_only: bool | None
    """Whether the input is only checked and counted."""


class BatchFilters(TypedDict, total=False):
    """Filters and page size of a list of batches; one that is missing matches every batch."""

    states: Sequence[str]
    """Only batches in one of these states, such as "running"."""
    labels: Mapping[str, str]
    """Only batches that have all of these labels."""
    page_size: int
    """Number of batches to request at a time; 0 for the server's default."""


def create_batch_request(
    source: File | str | None, object_key: str | None, options: BatchOptions
) -> CreateBatchRequest:
    """Returns the request for a batch. It has a request_id, so that it is safe to repeat.

    Raises:
        InvalidInputError: an argument has the wrong type; names it. The gateway checks the ranges.
        TypeError: there is no such option.
    """
    check_options(options, BatchOptions)
    request = CreateBatchRequest()
    rows = request.input
    if (source is None) == (object_key is None):
        raise InvalidInputError("source", "give a source or an object_key, and not both")
    if object_key is not None:
        fill("object_key", object_key, partial(setattr, rows, "object_key"))
    elif source is not None:
        fill("source", source_of(source), partial(setattr, rows, "file_id"))
    fields = {
        **request_fields(request),
        **{name: (rows, name) for name in ("ignore_columns", "skip_invalid")},
        **{name: (request, name) for name in ("name", "shard_prompts", "rank", "slots", "validate_only")},
    }
    given: dict[str, Any] = {"request_id": str(uuid.uuid4())}
    given |= {name: value for name, value in options.items() if value is not None}
    for name, value in given.items():
        match name:
            case "format":
                rows.format = enum_value(BatchFormat, "BATCH_FORMAT_", name, value)
            case "picture_format":
                request.picture_format = enum_value(PictureFormat, "PICTURE_FORMAT_", name, value)
            case "columns":
                fill(name, value, rows.columns.update)
            case _:
                fill_field(request, fields, name, value)
    return request


def list_batches_request(
    *, states: Sequence[str] = (), labels: Mapping[str, str] | None = None, page_size: int = 0
) -> ListBatchesRequest:
    """Returns the request for a page of batches; the arguments are those of `BatchFilters`.

    Raises:
        InvalidInputError: an argument has the wrong type, or names an unknown state.
    """
    request = ListBatchesRequest()
    request.states.extend(enum_value(BatchState, "BATCH_STATE_", "states", state) for state in states)
    fill("labels", labels or {}, request.labels.update)
    fill("page_size", page_size, partial(setattr, request, "page_size"))
    return request


def source_of(file: File | str) -> str:
    """Returns the id of a file."""
    return file.id if isinstance(file, File) else file


def file_start(source: Source, name: str | None, purpose: str, retention: float | None) -> FileStart:
    """Returns what is known of a file before its content.

    Raises:
        InvalidInputError: a file from memory has no name, or a value has the wrong type.
    """
    if name is None:
        if not isinstance(source, Path):
            raise InvalidInputError(
                "name", "is missing; content without a path needs one, such as prompts.jsonl"
            )
        name = source.name
    start = FileStart()
    fill("name", name, partial(setattr, start, "name"))
    fill("purpose", purpose, partial(setattr, start, "purpose"))
    if retention is not None:
        fill("retention", retention, partial(set_seconds, start.retention))
    return start
