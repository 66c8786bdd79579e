"""The names of the files of a batch, the same in a folder, below an S3 address, and in the store of a deployment."""

from dataclasses import dataclass
from typing import Final

from smalti.messages import MAX_IN_SHARD, MAX_SHARDS, ShardRange, batch_folder, shard_job, shard_key
from smalti.storage import JobId

__all__ = [
    "MAX_IN_SHARD",
    "MAX_SHARDS",
    "SHARDS_IN_MANIFEST",
    "SUCCESS_FILE",
    "SUMMARY_FILE",
    "WORK",
    "BatchKeys",
    "BatchLayout",
    "ShardRange",
]

SHARDS_IN_MANIFEST: Final = 1000
"""Shards whose prompts are in one file of the manifest."""
SUMMARY_FILE: Final = "summary.json"
SUCCESS_FILE: Final = "_SUCCESS"
"""Empty, and written last: everything else is complete."""
WORK: Final = "_work/"
"""Where a run without a deployment keeps what it goes on from; removed at its end."""


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
        super().__init__(f"{batch_folder(batch)}output/")
        self.batch = batch
        self.folder = batch_folder(batch)
        """The prefix of everything that belongs to the batch."""

    def shard(self, number: int) -> str:
        """Returns the key of the prompts of a shard: a `ShardFile`."""
        return shard_key(self.batch, number)

    def part(self, shard: ShardRange) -> str:
        """Returns the name of the results of a shard's prompts, JSON lines of `PromptResult`; the content is added."""
        return f"{self.folder}parts/{shard.name}.jsonl"

    def job(self, shard: ShardRange) -> str:
        """Returns the id under which the stages work on a shard: that of the folder of its intermediate objects."""
        return shard_job(self.batch, shard)
