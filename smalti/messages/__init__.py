"""The messages in the queues: small versioned JSON texts, validated like any input from outside.

A message carries references, never tensors or pictures. It holds every field that a stage needs, so that a worker knows
nothing but its model; each task makes the messages that follow from it (`EncodeTask.next` and the like).

A released version never changes, because other code of the same version must understand it. A change makes a new
version, and the old ones stay readable. Version 2 was released with 0.2.0. A message of version 3 may have fields that
its reader does not know; they are ignored and passed on.
"""

from smalti.messages.envelope import (
    DEFAULT_VERSION,
    MAX_CHUNKS,
    MAX_CLOCK_SKEW_SECONDS,
    MAX_GIVEN_TOKENS,
    MAX_IN_CHUNK,
    MAX_MESSAGE_BYTES,
    MAX_PROMPT_LENGTH,
    MAX_TO_REFINE,
    VERSION,
    Chunk,
    Prompt,
    ShortText,
    Trace,
)
from smalti.messages.events import (
    MAX_NOTICE_LENGTH,
    MAX_WORD_LENGTH,
    MAX_WORDS,
    Event,
    Failed,
    FailureReason,
    Progress,
    PromptReading,
    ShardProgress,
    ShardReport,
    StageDone,
)
from smalti.messages.hello import MAX_CARD_LENGTH, MAX_HELLO_SECONDS, Hello
from smalti.messages.parsing import Message, Task, parse, parse_hello
from smalti.messages.queues import (
    HELLO_QUEUE,
    KEY_LENGTH,
    QUEUE_PREFIX,
    RouteKey,
    Stage,
    dead_queue_name,
    queue_name,
)
from smalti.messages.routed import RoutedTask
from smalti.messages.routing import MAX_ADAPTERS, ROUTES_SINCE, Adapter
from smalti.messages.settings import MESSAGES_PREFIX, MessageSettings, message_settings
from smalti.messages.shards import (
    MAX_IN_SHARD,
    MAX_SHARDS,
    SHARDS_SINCE,
    DecodeShardTask,
    EncodeShardTask,
    GenerateShardTask,
    RankShardTask,
    RefineShardTask,
    ShardRange,
    ShardTask,
    batch_folder,
    shard_job,
    shard_key,
)
from smalti.messages.tasks import (
    ChunkTask,
    DecodeTask,
    EncodeTask,
    GenerateTask,
    PictureToRefine,
    RankTask,
    RefineTask,
    StageTask,
)
from smalti.parameters import MAX_CANDIDATES, CandidateIndex

__all__ = [
    "DEFAULT_VERSION",
    "HELLO_QUEUE",
    "KEY_LENGTH",
    "MAX_ADAPTERS",
    "MAX_CANDIDATES",
    "MAX_CARD_LENGTH",
    "MAX_CHUNKS",
    "MAX_CLOCK_SKEW_SECONDS",
    "MAX_GIVEN_TOKENS",
    "MAX_HELLO_SECONDS",
    "MAX_IN_CHUNK",
    "MAX_IN_SHARD",
    "MAX_MESSAGE_BYTES",
    "MAX_NOTICE_LENGTH",
    "MAX_PROMPT_LENGTH",
    "MAX_SHARDS",
    "MAX_TO_REFINE",
    "MAX_WORDS",
    "MAX_WORD_LENGTH",
    "MESSAGES_PREFIX",
    "QUEUE_PREFIX",
    "ROUTES_SINCE",
    "SHARDS_SINCE",
    "VERSION",
    "Adapter",
    "CandidateIndex",
    "Chunk",
    "ChunkTask",
    "DecodeShardTask",
    "DecodeTask",
    "EncodeShardTask",
    "EncodeTask",
    "Event",
    "Failed",
    "FailureReason",
    "GenerateShardTask",
    "GenerateTask",
    "Hello",
    "Message",
    "MessageSettings",
    "PictureToRefine",
    "Progress",
    "Prompt",
    "PromptReading",
    "RankShardTask",
    "RankTask",
    "RefineShardTask",
    "RefineTask",
    "RouteKey",
    "RoutedTask",
    "ShardProgress",
    "ShardRange",
    "ShardReport",
    "ShardTask",
    "ShortText",
    "Stage",
    "StageDone",
    "StageTask",
    "Task",
    "Trace",
    "batch_folder",
    "dead_queue_name",
    "message_settings",
    "parse",
    "parse_hello",
    "queue_name",
    "shard_job",
    "shard_key",
]
