"""The tables.

Times are whole microseconds since 1970 (UTC). JSON columns are read and written as a whole. Some columns have an older
name than their attribute: databases of earlier versions stay readable without a migration.
"""

from smalti.services.gateway.database.tables.base import (
    DEFAULT_TENANT,
    MAX_ID_LENGTH,
    MAX_REVISION_LENGTH,
    Base,
)
from smalti.services.gateway.database.tables.batches import (
    IS_LEASED_SHARD,
    IS_OPEN_BATCH,
    IS_WAITING_SHARD,
    MAX_NAME_LENGTH,
    OPEN_BATCH_STATES,
    Batch,
    BatchState,
    Shard,
    ShardState,
)
from smalti.services.gateway.database.tables.files import (
    MAX_PURPOSE_LENGTH,
    FileState,
    StoredFile,
)
from smalti.services.gateway.database.tables.gateways import (
    GatewayProcess,
    SchemaCompatibility,
)
from smalti.services.gateway.database.tables.jobs import (
    IS_LEASED,
    IS_OPEN,
    IS_WAITING,
    OPEN_STATES,
    PRIORITIES,
    PRIORITY_NUMBERS,
    Chunk,
    ChunkProgress,
    ChunkState,
    Job,
    JobState,
    Label,
    ScoredCandidate,
    StoreAction,
    StoreTask,
)
from smalti.services.gateway.database.tables.models import (
    Revision,
    Worker,
)
from smalti.services.gateway.database.tables.paging import PageCursor, page_of
from smalti.services.gateway.database.tables.tenants import (
    COUNTERS,
    MAX_URL_LENGTH,
    ApiKey,
    DailyUsage,
    Delivery,
    Tenant,
    Webhook,
)

__all__ = [
    "COUNTERS",
    "DEFAULT_TENANT",
    "IS_LEASED",
    "IS_LEASED_SHARD",
    "IS_OPEN",
    "IS_OPEN_BATCH",
    "IS_WAITING",
    "IS_WAITING_SHARD",
    "MAX_ID_LENGTH",
    "MAX_NAME_LENGTH",
    "MAX_PURPOSE_LENGTH",
    "MAX_REVISION_LENGTH",
    "MAX_URL_LENGTH",
    "OPEN_BATCH_STATES",
    "OPEN_STATES",
    "PRIORITIES",
    "PRIORITY_NUMBERS",
    "ApiKey",
    "Base",
    "Batch",
    "BatchState",
    "Chunk",
    "ChunkProgress",
    "ChunkState",
    "DailyUsage",
    "Delivery",
    "FileState",
    "GatewayProcess",
    "Job",
    "JobState",
    "Label",
    "PageCursor",
    "Revision",
    "SchemaCompatibility",
    "ScoredCandidate",
    "Shard",
    "ShardState",
    "StoreAction",
    "StoreTask",
    "StoredFile",
    "Tenant",
    "Webhook",
    "Worker",
    "page_of",
]
