"""The object store: the data that stages pass on, and the results of jobs."""

from smalti.storage.addresses import S3_SCHEME, open_address
from smalti.storage.breaker import BreakerStore
from smalti.storage.checking import StoreCheck
from smalti.storage.keys import (
    JobId,
    JobKeys,
    Key,
    ObjectRef,
    Sha256,
    check_key,
    content_key,
    is_intermediate,
    is_picture,
)
from smalti.storage.local import LocalStore
from smalti.storage.memory import MemoryStore
from smalti.storage.settings import StoreSettings, open_store, store_settings
from smalti.storage.store import ObjectInfo, ObjectStore, digest, digest_of_file, find, sweep

__all__ = [
    "S3_SCHEME",
    "BreakerStore",
    "JobId",
    "JobKeys",
    "Key",
    "LocalStore",
    "MemoryStore",
    "ObjectInfo",
    "ObjectRef",
    "ObjectStore",
    "Sha256",
    "StoreCheck",
    "StoreSettings",
    "check_key",
    "content_key",
    "digest",
    "digest_of_file",
    "find",
    "is_intermediate",
    "is_picture",
    "open_address",
    "open_store",
    "store_settings",
    "sweep",
    "timed",
]
