"""The object store: the data that stages pass on, and the results of jobs."""

from smalti.storage.keys import JobId, JobKeys, ObjectRef, check_key, is_intermediate
from smalti.storage.local import LocalStore
from smalti.storage.memory import MemoryStore
from smalti.storage.settings import StoreSettings, open_store, store_settings
from smalti.storage.store import ObjectInfo, ObjectStore, digest, find, sweep

__all__ = [
    "JobId",
    "JobKeys",
    "LocalStore",
    "MemoryStore",
    "ObjectInfo",
    "ObjectRef",
    "ObjectStore",
    "StoreSettings",
    "check_key",
    "digest",
    "find",
    "is_intermediate",
    "open_store",
    "store_settings",
    "sweep",
    "timed",
]
