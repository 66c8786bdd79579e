"""The names of the files of a batch, the same in a folder, below an S3 address, and in the store of a deployment."""

from dataclasses import dataclass
from typing import Annotated, Final

from pydantic import Field, model_validator

from smalti.storage import JobId
from smalti.validation import Strict

MAX_IN_SHARD: Final = 1024
"""Prompts of a shard."""
MAX_SHARDS: Final = 10**6
"""Shards of a batch."""
SHARDS_IN_MANIFEST: Final = 1000
"""Shards whose prompts are in one file of the manifest."""
SUMMARY_FILE: Final = "summary.json"
SUCCESS_FILE: Final = "_SUCCESS"
"""Empty, and written last: everything else is complete."""
WORK: Final = "_work/"
"""Where a run without a deployment keeps what it goes on from; removed at its end."""


class ShardRange(Strict):
    """Prompts of a shard that are drawn together: all of them, or a part of a shard that was halved."""

    number: Annotated[int, Field(ge=0, lt=MAX_SHARDS)]
    """The number of the shard in the batch."""
    start: Annotated[int, Field(ge=0, lt=MAX_IN_SHARD)] = 0
    """The first of the prompts in the shard."""
    count: Annotated[int, Field(ge=1, le=MAX_IN_SHARD)]
    part: bool = False
    """Whether the shard was halved."""

    @model_validator(mode="after")
    def _check_range(self) -> "ShardRange":
        if self.start + self.count > MAX_IN_SHARD or (self.start and not self.part):
            raise ValueError(f"a shard has at most {MAX_IN_SHARD} prompts, and begins with the first")
        return self

    @property
    def name(self) -> str:
        """The name of its files, without an ending."""
        return f"{self.number:05d}-{self.start}-{self.count}" if self.part else f"{self.number:05d}"

    def halves(self) -> "tuple[ShardRange, ShardRange]":
        """Returns its halves; it must have two prompts at least."""
        if self.count < 2:
            raise ValueError("a single prompt cannot be halved")
        first = (self.count + 1) // 2
        return (
            ShardRange(number=self.number, start=self.start, count=first, part=True),
            ShardRange(number=self.number, start=self.start + first, count=self.count - first, part=True),
        )


@dataclass(frozen=True)
class BatchLayout:
    """The names of a batch's files below a prefix."""

    prefix: str = ""
    """Empty, or ends with "/"."""

    def tar(self, shard: ShardRange) -> str:
        """Returns the name of the pictures of a shard."""
        return f"{self.prefix}{shard.name}.tar"

    def manifest(self, number: int) -> str:
        """Returns the name of a file of the manifest; it has `SHARDS_IN_MANIFEST` shards."""
        return f"{self.prefix}manifest/{number:05d}.parquet"

    @property
    def summary(self) -> str:
        """The name of the summary."""
        return f"{self.prefix}{SUMMARY_FILE}"

    @property
    def success(self) -> str:
        """The name of the mark of a complete batch."""
        return f"{self.prefix}{SUCCESS_FILE}"


class BatchKeys(BatchLayout):
    """The keys of a batch in the store of a deployment."""

    def __init__(self, batch: JobId) -> None:
        """Creates the keys of a batch with this id."""
        super().__init__(f"batches/{batch}/output/")
        self.batch = batch
        self.folder = f"batches/{batch}/"
        """The prefix of everything that belongs to the batch."""

    def shard(self, number: int) -> str:
        """Returns the key of the prompts of a shard: a `ShardFile`."""
        return f"{self.folder}shards/{number:05d}.jsonl"

    def part(self, shard: ShardRange) -> str:
        """Returns the name of the results of a shard's prompts, JSON lines of `PromptResult`; the content is added."""
        return f"{self.folder}parts/{shard.name}.jsonl"

    def job(self, shard: ShardRange) -> str:
        """Returns the id under which the stages work on a shard: that of the folder of its intermediate objects."""
        return f"{self.batch}-{shard.name}"
