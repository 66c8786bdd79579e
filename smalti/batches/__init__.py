"""The files of batches: reading and checking their input, cutting it into shards, and writing what is drawn."""

from smalti.batches.layout import (
    MAX_IN_SHARD,
    SHARDS_IN_MANIFEST,
    SUCCESS_FILE,
    SUMMARY_FILE,
    BatchKeys,
    BatchLayout,
    ShardRange,
)
from smalti.batches.prompts import (
    BatchPrompt,
    PictureFormat,
    PictureRecord,
    PromptResult,
    ShardFile,
    seed_of_row,
)

__all__ = [
    "MAX_IN_SHARD",
    "SHARDS_IN_MANIFEST",
    "SUCCESS_FILE",
    "SUMMARY_FILE",
    "BatchKeys",
    "BatchLayout",
    "BatchPrompt",
    "PictureFormat",
    "PictureRecord",
    "PromptResult",
    "ShardFile",
    "ShardRange",
    "seed_of_row",
]
