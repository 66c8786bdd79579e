"""An object store whose calls are timed, and recorded as spans."""

import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from opentelemetry.trace import SpanKind

from smalti.storage import (
    DamagedObjectError,
    MissingObjectError,
    ObjectInfo,
    ObjectRef,
    ObjectStore,
    StoreUnavailableError,
)
from smalti.telemetry import tracing
from smalti.telemetry.metrics import Metrics

Result = TypeVar("Result")


class TimedStore:
    """Passes every call on; see `ObjectStore`."""

    def __init__(self, store: ObjectStore, metrics: Metrics) -> None:
        """Takes the store that does the work."""
        self._store = store
        self._metrics = metrics

    def put(self, key: str, content: bytes, *, content_type: str = "application/octet-stream") -> ObjectRef:
        """See `ObjectStore`."""
        return self._timed("put", key, lambda: self._store.put(key, content, content_type=content_type))

    def get(self, key: str, *, sha256: str | None = None) -> bytes:
        """See `ObjectStore`."""
        return self._timed("get", key, lambda: self._store.get(key, sha256=sha256))

    def stat(self, key: str) -> ObjectInfo | None:
        """See `ObjectStore`."""
        return self._timed("stat", key, lambda: self._store.stat(key))

    def delete(self, *keys: str) -> None:
        """See `ObjectStore`."""
        self._timed("delete", "", lambda: self._store.delete(*keys))

    def objects(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `ObjectStore`; it is not timed, since how long it takes is the caller's as well."""
        return self._store.objects(prefix)

    def presigned_url(self, key: str, *, seconds: float) -> str:
        """See `ObjectStore`; the store is not asked."""
        return self._store.presigned_url(key, seconds=seconds)

    def expire_after(self, days: int) -> bool:
        """See `ObjectStore`."""
        return self._timed("expire_after", "", lambda: self._store.expire_after(days))

    def check(self) -> None:
        """See `ObjectStore`."""
        self._timed("check", "", self._store.check)

    def _timed(self, op: str, key: str, call: Callable[[], Result]) -> Result:
        outcome, begin = "failed", time.perf_counter()
        try:
            with tracing.inner_span(f"{op} object", SpanKind.CLIENT, {"smalti.object.key": key}):
                result = call()
            outcome = "done"
            return result
        except MissingObjectError:
            outcome = "missing"
            raise
        except DamagedObjectError:
            outcome = "damaged"
            raise
        except StoreUnavailableError as error:
            outcome = "unavailable" if error.transient else "refused"
            raise
        finally:
            self._metrics.observe("object_store_seconds", time.perf_counter() - begin, op=op, outcome=outcome)
