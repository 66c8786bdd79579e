"""Finishing a batch: from the results of its shards to the manifest, the summary, and the mark that all is there."""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
from pydantic import Field, ValidationError

from smalti.batches.checking import BatchDefaults
from smalti.batches.layout import MAX_IN_SHARD, SHARDS_IN_MANIFEST, BatchLayout, ShardRange
from smalti.batches.manifest import ManifestWriter, parse_results
from smalti.batches.places import JSON, PARQUET, OutputPlace
from smalti.batches.prompts import PictureFormat
from smalti.batches.reading import InputFormat
from smalti.errors import DamagedObjectError
from smalti.storage import Sha256
from smalti.validation import Strict, first_problem

_STATES: Final = {"drawn": 0, "failed": 0, "invalid": 0}
_REQUIRED: Final = ("id", "prompt", "seed", "state", "model", "revision", "pictures")

Amount = Annotated[int, Field(ge=0)]
FinalState = Literal["complete", "cancelled", "expired"]


class InputRecord(Strict):
    """The input of a batch."""

    name: str
    """The name of the file, without folders."""
    sha256: Sha256
    format: InputFormat


class OutputCounts(Strict):
    """What a batch has become."""

    prompts: Amount
    """Prompts in the manifest."""
    drawn: Amount
    failed: Amount
    invalid: Amount
    blank: Amount
    """Blank lines of the input."""
    pictures: Amount
    bytes: Amount
    """The size of the files of all pictures."""


class BatchDescription(Strict):
    """What a batch is, whatever has become of it."""

    input: InputRecord
    model: str
    parameters: BatchDefaults
    picture_format: PictureFormat
    shard_prompts: Annotated[int, Field(ge=1, le=MAX_IN_SHARD)]
    prompts: Amount
    """Rows of the input, with the invalid ones."""
    blank: Amount
    """Blank lines of the input."""

    @property
    def shards(self) -> int:
        """The number of its shards."""
        return -(-self.prompts // self.shard_prompts)

    def prompts_of(self, shard: int) -> int:
        """Returns the number of prompts of a shard."""
        return min(self.shard_prompts, self.prompts - shard * self.shard_prompts)


class BatchSummary(Strict):
    """`summary.json`: a batch that has ended. Equal runs give equal bytes."""

    version: Literal[1] = 1
    state: FinalState
    input: InputRecord
    model: str
    revisions: tuple[str, ...]
    """The revisions of the model that drew it, in alphabetical order."""
    counts: OutputCounts
    parameters: BatchDefaults
    picture_format: PictureFormat
    shard_prompts: int
    shards: tuple[str, ...]
    """The names of the tars, in the order of their rows."""

    def to_bytes(self) -> bytes:
        """Returns the file."""
        return self.model_dump_json(exclude_none=True, indent=1).encode() + b"\n"

    @classmethod
    def parse(cls, name: str, content: bytes) -> "BatchSummary":
        """Reads the file; raises `DamagedObjectError` if it is not valid."""
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            raise DamagedObjectError(name, str(first_problem(error))) from None


@dataclass(frozen=True, kw_only=True)
class ResultPart:
    """The results of the prompts that were drawn together."""

    range: ShardRange
    load: Callable[[], bytes]
    """Returns the part, as `PromptResult.to_bytes` makes it."""


def finish(
    place: OutputPlace,
    description: BatchDescription,
    parts: Iterable[ResultPart],
    state: FinalState = "complete",
    *,
    folder: Path | None = None,
    before_mark: Callable[[BatchSummary], None] = lambda summary: None,
) -> BatchSummary:
    """Writes the manifest, the summary, and for a complete batch the mark, in this order.

    May be repeated, and gives the same files then. Memory does not grow with the batch, but for the names of the tars.

    Args:
        place: where the output is.
        description: the batch.
        parts: the results, in the order of their rows: all of them if the batch is complete.
        state: how the batch has ended.
        folder: where temporary files are made; None for the system's place.
        before_mark: called when everything but the mark is written.

    Raises:
        DamagedObjectError: a part is not valid, or a row is missing or occurs twice; nothing is marked as complete.
    """
    tally = _Tally()
    layout = BatchLayout()
    with tempfile.TemporaryDirectory(prefix="smalti-manifest-", dir=folder) as temporary:
        path = Path(temporary) / "manifest.parquet"
        for number, group in groupby(_tables(description, parts, state), _manifest_of):
            with ManifestWriter(path) as writer:
                for _, table in group:
                    writer.add(table)
                    tally.add(table)
            place.put_file(layout.manifest(number), path, PARQUET)
    summary = BatchSummary(
        state=state,
        input=description.input,
        model=description.model,
        revisions=tuple(sorted(tally.revisions)),
        counts=tally.counts(description.blank),
        parameters=description.parameters,
        picture_format=description.picture_format,
        shard_prompts=description.shard_prompts,
        shards=tuple(tally.tars),
    )
    place.put(layout.summary, summary.to_bytes(), JSON)
    before_mark(summary)
    if state == "complete":
        place.put(layout.success, b"")
    return summary


def _manifest_of(numbered: tuple[int, Any]) -> int:
    return numbered[0] // SHARDS_IN_MANIFEST


def _tables(
    description: BatchDescription, parts: Iterable[ResultPart], state: FinalState
) -> Iterator[tuple[int, Any]]:
    """Yields all results with the numbers of their shards, every row once; raises `DamagedObjectError`."""
    row = 0
    is_complete = state == "complete"
    for part in parts:
        name = f"{part.range.name}.jsonl"
        first = part.range.number * description.shard_prompts + part.range.start
        if first < row or (is_complete and first > row):
            raise DamagedObjectError(name, f"begins with row {first}, but row {row} comes next")
        if part.range.start + part.range.count > description.prompts_of(part.range.number):
            raise DamagedObjectError(name, "has more prompts than its shard")
        row = first + part.range.count
        table = parse_results(name, part.load())
        if not np.array_equal(table["row"].to_numpy(), np.arange(first, row)):
            raise DamagedObjectError(name, f"does not have the rows from {first} to {row - 1}")
        if empty := [column for column in _REQUIRED if table[column].null_count]:
            raise DamagedObjectError(name, f"has a row without {empty[0]}")
        tar = BatchLayout().tar(part.range)
        if others := set(table["tar"].unique().to_pylist()) - {None, tar}:
            raise DamagedObjectError(name, f"has pictures in {min(others)!r:.60}, not in {tar}")
        if others := set(table["state"].unique().to_pylist()) - _STATES.keys():
            raise DamagedObjectError(name, f"has the states {others}")
        yield part.range.number, table
    if is_complete and row != description.prompts:
        raise DamagedObjectError("parts", f"row {row} is missing")


class _Tally:
    """Counts what is written."""

    def __init__(self) -> None:
        self._states = dict(_STATES)
        self._pictures = 0
        self._bytes = 0
        self.revisions: set[str] = set()
        self.tars: list[str] = []

    def add(self, table: Any) -> None:
        for found in table["state"].value_counts().to_pylist():
            self._states[found["values"]] += found["counts"]
        pictures = table["pictures"].combine_chunks().flatten()
        self._pictures += len(pictures)
        self._bytes += sum(pictures.field("size").to_pylist())
        self.revisions.update(table["revision"].unique().to_pylist())
        self.tars.extend(tar for tar in table["tar"].unique().to_pylist() if tar is not None)

    def counts(self, blank: int) -> OutputCounts:
        return OutputCounts(
            prompts=sum(self._states.values()),
            **self._states,
            blank=blank,
            pictures=self._pictures,
            bytes=self._bytes,
        )
