"""Planning: checking a whole input, and cutting it into shards; memory does not grow with the input."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Final

from smalti.batches.checking import BatchDefaults, RowChecker
from smalti.batches.duplicates import DuplicateFinder
from smalti.batches.layout import MAX_IN_SHARD, MAX_SHARDS, ShardRange
from smalti.batches.openai import OpenAIOptions, OpenAIReader
from smalti.batches.prompts import BatchPrompt, ShardFile
from smalti.batches.reading import (
    INPUT,
    Columns,
    EditSource,
    InputFormat,
    RowProblem,
    RowReader,
    message_of,
    open_rows,
)
from smalti.errors import InvalidInputError
from smalti.validation import Strict

DEFAULT_SHARD_PROMPTS: Final = 256
_ROWS_BETWEEN_REPORTS: Final = 10_000

OnRows = Callable[[int], None]
"""Called now and then with the number of rows that were read; may raise, which ends the reading."""
TokensOf = Callable[[EditSource], tuple[int, ...]]
"""Returns the image tokens that an edit keeps, as `BatchPrompt.given`; raises `InvalidInputError`."""


class PlanCounts(Strict):
    """What an input has."""

    prompts: int
    """Rows, with the invalid ones."""
    invalid: int
    """Rows that cannot be used."""
    blank: int
    """Blank lines."""
    candidates: int
    """Candidates of all prompts."""
    pictures: int
    """Pictures of all prompts."""


@dataclass(frozen=True, kw_only=True)
class PlannedShard:
    """A shard before it is drawn."""

    number: int
    prompts: list[BatchPrompt]

    @property
    def range(self) -> ShardRange:
        """All of its prompts."""
        return ShardRange(number=self.number, count=len(self.prompts))

    @property
    def candidates(self) -> int:
        """Candidates of its prompts that can be drawn."""
        return sum(prompt.candidates for prompt in self.prompts if prompt.problem is None)

    @property
    def pictures(self) -> int:
        """Pictures of its prompts that can be drawn."""
        return sum(prompt.n for prompt in self.prompts if prompt.problem is None)

    def to_bytes(self) -> bytes:
        """Returns the file of the shard."""
        return ShardFile.to_bytes(self.prompts)


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """An input, and how it is cut. Neither method may be called by two threads at a time."""

    open: Callable[[], BinaryIO]
    """Opens the input at its beginning, seekable."""
    format: InputFormat
    defaults: BatchDefaults
    columns: Mapping[str, str] = field(default_factory=dict)
    """The columns that have another name in the input, and that name."""
    ignore_columns: bool = False
    """Whether columns without a meaning are ignored."""
    skip_invalid: bool = False
    """Whether rows that cannot be used become invalid prompts; otherwise the first one is an error."""
    shard_prompts: int = DEFAULT_SHARD_PROMPTS
    """Prompts of a shard."""
    openai: OpenAIOptions | None = None
    """What requests of OpenAI's Batch API may ask for; needed for that format."""
    tokens_of: TokensOf | None = None
    """How edits get their tokens; None refuses them."""

    def check(
        self,
        *,
        folder: Path | None = None,
        on_rows: OnRows | None = None,
        on_invalid: Callable[[str], None] | None = None,
    ) -> PlanCounts:
        """Checks the whole input, and that no id occurs twice. Nothing may be drawn before that.

        Args:
            folder: where a temporary folder is made for the ids: 24 bytes a row; None for the system's place.
            on_rows: called now and then.
            on_invalid: called with the problem of each invalid row, in one line.

        Raises:
            InvalidInputError: names the line or row, the column, and the remedy. With `skip_invalid` only if the input
                as a whole cannot be read, an id occurs twice, or no row can be used.
        """
        self._check_shards()
        counts = dict.fromkeys(("prompts", "invalid", "candidates", "pictures"), 0)
        first_problem = ""
        with self.open() as file, DuplicateFinder(folder) as ids:
            reader = self._reader(file)
            for row, (place, prompt) in enumerate(self._prompts(reader)):
                counts["prompts"] += 1
                if prompt.problem is None:
                    counts["candidates"] += prompt.candidates
                    counts["pictures"] += prompt.n
                else:
                    counts["invalid"] += 1
                    message = f"{reader.unit} {place}: {prompt.problem}"
                    first_problem = first_problem or message
                    if on_invalid is not None:
                        on_invalid(message)
                # The number of an invalid row stands for an id that could not be read.
                if reader.has_ids and not (prompt.invalid and prompt.id == str(row)):
                    ids.add(prompt.id, place)
                if on_rows is not None and row % _ROWS_BETWEEN_REPORTS == 0:
                    on_rows(row)
            if (pair := ids.first()) is not None:
                raise InvalidInputError(
                    INPUT,
                    f"{reader.unit} {pair[1]}: the id is also that of {reader.unit} {pair[0]}; give every row an id of "
                    "its own",
                )
        self._check_counts(counts["prompts"], counts["invalid"], first_problem)
        return PlanCounts(**counts, blank=reader.blank)

    def shards(self, first: int = 0) -> Iterator[PlannedShard]:
        """Yields the shards from a shard on; the same input and defaults give the same shards.

        Raises:
            InvalidInputError: as `check`, but for ids.
        """
        self._check_shards()
        number = first
        with self.open() as file:
            rows = self._prompts(self._reader(file), first * self.shard_prompts, with_tokens=True)
            while prompts := [prompt for _, prompt in islice(rows, self.shard_prompts)]:
                yield PlannedShard(number=number, prompts=prompts)
                number += 1

    def _reader(self, file: BinaryIO) -> RowReader:
        if self.format is InputFormat.OPENAI:
            if self.openai is None:
                raise ValueError("requests of OpenAI's Batch API need options")
            return OpenAIReader(file, self.openai, self.defaults)
        return open_rows(file, self.format, Columns(self.columns, ignore_unknown=self.ignore_columns))

    def _prompts(
        self, reader: RowReader, first: int = 0, *, with_tokens: bool = False
    ) -> Iterator[tuple[int, BatchPrompt]]:
        """Yields the prompts of the rows from a row on, with their places in the input."""
        checker = RowChecker(self.defaults)
        for number, row in enumerate(reader.rows(first), first):
            problem = row.problem
            if problem is None:
                try:
                    given = self._given(row.edit, with_tokens)
                    yield row.place, checker.prompt(number, row.fields, given)
                    continue
                except InvalidInputError as error:
                    problem = RowProblem(error.problem, self._column(error.field))
            if not self.skip_invalid:
                raise InvalidInputError(INPUT, message_of(reader.unit, row.place, problem))
            yield row.place, checker.invalid(number, row.fields, problem)

    def _given(self, edit: EditSource | None, with_tokens: bool) -> tuple[int, ...]:
        if edit is None:
            return ()
        if self.tokens_of is None:
            raise InvalidInputError("images", "edits cannot be drawn here; leave them out")
        return self.tokens_of(edit) if with_tokens else ()

    def _column(self, name: str) -> str:
        """Returns the name that the input gives a column, for errors."""
        if self.format is InputFormat.TEXT:
            return ""
        if self.format is InputFormat.OPENAI:
            return "custom_id" if name == "id" else f"body.{name}"
        return self.columns.get(name, name)

    def _check_shards(self) -> None:
        if not 1 <= self.shard_prompts <= MAX_IN_SHARD:
            raise InvalidInputError(
                "shard_prompts", f"must be from 1 to {MAX_IN_SHARD}, not {self.shard_prompts}"
            )

    def _check_counts(self, prompts: int, invalid: int, first_problem: str) -> None:
        if not prompts:
            raise InvalidInputError(INPUT, "has no prompts; give one at least")
        if invalid == prompts:
            raise InvalidInputError(INPUT, f"no row can be used; {first_problem}")
        if prompts > self.shard_prompts * MAX_SHARDS:
            raise InvalidInputError(
                INPUT,
                f"has {prompts} rows, which are more than {MAX_SHARDS} shards; use larger shards, or several batches",
            )
