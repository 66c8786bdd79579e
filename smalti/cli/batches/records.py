"""What a run leaves in `_work/`, from which the same command goes on: what it draws, and how far it has come."""

import json
import re
from collections.abc import Iterator, Mapping, Set
from functools import partial
from typing import Any, Final, Literal

from pydantic import Field, ValidationError

from smalti.batches import (
    SUCCESS_FILE,
    SUMMARY_FILE,
    WORK,
    BatchDescription,
    BatchSummary,
    PlanCounts,
    PromptResult,
    ResultPart,
    ShardRange,
)
from smalti.cli.batches.places import FIELD, RunPlace
from smalti.entrance import signals
from smalti.errors import DamagedObjectError, InvalidInputError
from smalti.validation import Strict

RUN_FILE: Final = f"{WORK}run.json"
BATCH_FILE: Final = f"{WORK}batch.json"
"""The batch of a gateway whose files a place gets."""
PARTS: Final = f"{WORK}parts/"
BEGUN: Final = f"{WORK}begun/"
_PART: Final = re.compile(r"(\d{5,})\.jsonl")
_MAX_SHOWN: Final = 60
_JSON: Final = "application/json"


class RunRecord(Strict):
    """What a run draws: all that decides what its files have."""

    version: Literal[1] = 1
    description: BatchDescription
    counts: PlanCounts
    revision: str
    """The revision of the model."""
    refiner: str | None = None
    """The revision of the model's refiner, if it is used."""
    columns: dict[str, str] = Field(default_factory=dict)
    ignore_columns: bool = False
    skip_invalid: bool = False

    def to_bytes(self) -> bytes:
        """Returns the file."""
        return self.model_dump_json(indent=1).encode() + b"\n"


class Begun(Strict):
    """A shard that a run was drawing when its process was lost."""

    failed: tuple[int, ...] = ()
    """Rows that have ended the process twice in a row, each drawn alone."""
    row: int | None = None
    """The row that was drawn alone; None if the whole shard was drawn."""
    times: int = 0
    """How often the process was lost in a row while it drew this row alone."""


def load_run(place: RunPlace) -> RunRecord | None:
    """Returns the record of an earlier run, or None without one.

    Raises:
        InvalidInputError: the record cannot be read.
    """
    content = place.get(RUN_FILE)
    if content is None:
        return None
    try:
        return RunRecord.model_validate_json(content)
    except ValidationError:
        raise InvalidInputError(
            FIELD,
            f"{place.label} has a run of another version of Smalti ({RUN_FILE}); give another place, or remove it",
        ) from None


def load_summary(place: RunPlace) -> BatchSummary | None:
    """Returns the summary of a batch that is there, or None without one; raises `DamagedObjectError`."""
    content = place.get(SUMMARY_FILE)
    return None if content is None else BatchSummary.parse(SUMMARY_FILE, content)


def check_empty(place: RunPlace) -> None:
    """Checks that a place has nothing, when a run begins.

    Raises:
        InvalidInputError: it has files, or a run of the other kind, here or at a gateway.
    """
    for name, where in ((RUN_FILE, "in one process"), (BATCH_FILE, "at a gateway")):
        if place.get(name) is not None:
            raise InvalidInputError(
                FIELD, f"{place.label} has a run {where}; give another place, or go on with that run"
            )
    for name in place.names():
        if not name.startswith(WORK):
            raise InvalidInputError(
                FIELD, f"{place.label} is not empty (it has {name}); give another place, or empty it"
            )


def check_same(place: RunPlace, there: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Checks that a place has no other run.

    Raises:
        InvalidInputError: it has one; names the first difference.
    """
    for name, (before, now) in _differences(there, wanted):
        raise InvalidInputError(
            FIELD,
            f"{place.label} has another run: its {name} is {_shown(before)}, not {_shown(now)}; give another place, or "
            "the input and options of that run",
        )


def check_whole(place: RunPlace, summary: BatchSummary) -> None:
    """Raises `InvalidInputError` if files of a batch that is complete are missing."""
    there = set(place.names())
    if missing := [name for name in summary.shards if name not in there]:
        raise InvalidInputError(
            FIELD,
            f"{place.label} has {SUCCESS_FILE}, but lacks {missing[0]}; give another place, or remove all of it",
        )


def comparable(
    description: BatchDescription | BatchSummary, revisions: tuple[str, ...], **more: Any
) -> dict[str, Any]:
    """Returns what must be equal for two runs to be one."""
    return {
        "input": description.input.sha256,
        "format of the input": description.input.format.value,
        "model": description.model,
        "revision": " ".join(revisions),
        "parameters": description.parameters.model_dump(mode="json"),
        "picture format": description.picture_format.value,
        "prompts in a shard": description.shard_prompts,
        **more,
    }


def comparable_run(record: RunRecord) -> dict[str, Any]:
    """Returns what must be equal for a run to go on."""
    return comparable(
        record.description,
        (record.revision,),
        refiner=record.refiner,
        columns=record.columns,
        ignore_columns=record.ignore_columns,
        skip_invalid=record.skip_invalid,
    )


def finished_shards(place: RunPlace) -> set[int]:
    """Returns the numbers of the shards whose results are there."""
    names = (name.removeprefix(PARTS) for name in place.names(PARTS))
    return {int(found[1]) for name in names if (found := _PART.fullmatch(name))}


def part_name(number: int) -> str:
    """Returns the name of the results of a shard."""
    return f"{PARTS}{number:05d}.jsonl"


def write_part(place: RunPlace, number: int, results: list[PromptResult]) -> None:
    """Writes the results of a shard, whose pictures must be there; it is done then."""
    place.put(part_name(number), PromptResult.to_bytes(results), "application/jsonl")


def result_parts(place: RunPlace, description: BatchDescription) -> Iterator[ResultPart]:
    """Yields the results of all shards, in order."""
    for number in range(description.shards):
        signals.check()
        yield ResultPart(
            range=ShardRange(number=number, count=description.prompts_of(number)),
            load=partial(_load, place, part_name(number)),
        )


def _load(place: RunPlace, name: str) -> bytes:
    content = place.get(name)
    if content is None:
        raise DamagedObjectError(name, "it is missing")
    return content


def load_begun(place: RunPlace, finished: Set[int]) -> dict[int, Begun]:
    """Returns the shards that were being drawn when a process was lost, by their numbers."""
    found = {}
    for name in list(place.names(BEGUN)):
        number = int(name.removeprefix(BEGUN).partition(".")[0])
        content = place.get(name)
        if number in finished or content is None:
            place.remove(name)
            continue
        try:
            found[number] = Begun.model_validate_json(content)
        except ValidationError:
            found[number] = Begun()
    return found


def write_begun(place: RunPlace, number: int, begun: Begun) -> None:
    """Notes that a shard is being drawn."""
    place.put(_begun_name(number), begun.model_dump_json().encode(), _JSON)


def remove_begun(place: RunPlace, *numbers: int) -> None:
    """Notes that shards are not being drawn any more."""
    place.remove(*map(_begun_name, numbers))


def _begun_name(number: int) -> str:
    return f"{BEGUN}{number:05d}.json"


def _differences(
    there: Mapping[str, Any], wanted: Mapping[str, Any]
) -> Iterator[tuple[str, tuple[Any, Any]]]:
    for name in dict.fromkeys((*wanted, *there)):
        before, now = there.get(name), wanted.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            yield from _differences(before, now)
        elif before != now:
            yield name, (before, now)


def _shown(value: Any) -> str:
    if value is None:
        return "the default"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"
