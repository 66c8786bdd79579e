"""The files of batches: reading and checking their input, cutting it into shards, and writing what is drawn."""

from smalti.batches import openai
from smalti.batches.checking import BatchDefaults
from smalti.batches.finishing import (
    BatchDescription,
    BatchSummary,
    FinalState,
    InputRecord,
    OutputCounts,
    ResultPart,
    finish,
)
from smalti.batches.layout import (
    MAX_IN_SHARD,
    SHARDS_IN_MANIFEST,
    SUCCESS_FILE,
    SUMMARY_FILE,
    WORK,
    BatchKeys,
    BatchLayout,
    ShardRange,
)
from smalti.batches.manifest import read_manifest
from smalti.batches.places import TAR, FolderPlace, OutputPlace, StorePlace
from smalti.batches.planning import (
    DEFAULT_SHARD_PROMPTS,
    BatchPlan,
    OnRows,
    PlanCounts,
    PlannedShard,
)
from smalti.batches.prompts import (
    BatchPrompt,
    PictureFormat,
    PictureRecord,
    PromptResult,
    ShardFile,
    seed_of_row,
)
from smalti.batches.reading import COLUMNS, EditSource, InputFormat, format_of
from smalti.batches.tars import (
    DrawnPicture,
    TarPicture,
    TarRecord,
    TarWriter,
    add_member,
    read_tar,
    webp_bytes,
)

__all__ = [
    "COLUMNS",
    "DEFAULT_SHARD_PROMPTS",
    "MAX_IN_SHARD",
    "SHARDS_IN_MANIFEST",
    "SUCCESS_FILE",
    "SUMMARY_FILE",
    "TAR",
    "WORK",
    "BatchDefaults",
    "BatchDescription",
    "BatchKeys",
    "BatchLayout",
    "BatchPlan",
    "BatchPrompt",
    "BatchSummary",
    "DrawnPicture",
    "EditSource",
    "FinalState",
    "FolderPlace",
    "InputFormat",
    "InputRecord",
    "OnRows",
    "OutputCounts",
    "OutputPlace",
    "PictureFormat",
    "PictureRecord",
    "PlanCounts",
    "PlannedShard",
    "PromptResult",
    "ResultPart",
    "ShardFile",
    "ShardRange",
    "StorePlace",
    "TarPicture",
    "TarRecord",
    "TarWriter",
    "add_member",
    "finish",
    "format_of",
    "openai",
    "read_manifest",
    "read_tar",
    "seed_of_row",
    "webp_bytes",
]
