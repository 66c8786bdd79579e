"""An object store whose calls are timed and recorded as spans."""

import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from opentelemetry.trace import SpanKind

from smalti.errors import DamagedObjectError, MissingObjectError, StoreUnavailableError
from smalti.storage.keys import ObjectRef
from smalti.storage.store import ObjectInfo, ObjectStore
from smalti.telemetry import Metrics, tracing

Result = TypeVar("Result")


class TimedStore:
    """Wraps an `ObjectStore`."""

    def __init__(self, store: ObjectStore, metrics: Metrics) -> None:
        self._store = store
        self._metrics = metrics

    def put(self, key: str, content: bytes, *, content_type: str = "application/octet-stream") -> ObjectRef:  # noqa: D102
        return self._timed("put", key, lambda: self._store.put(key, content, content_type=content_type))

    def create(self, key: str, content: bytes, *, content_type: str = "application/octet-stream") -> bool:  # noqa: D102
        return self._timed("create", key, lambda: self._store.create(key, content, content_type=content_type))

    def get(self, key: str, *, sha256: str | None = None) -> bytes:  # noqa: D102
        return self._timed("get", key, lambda: self._store.get(key, sha256=sha256))

    def stat(self, key: str) -> ObjectInfo | None:  # noqa: D102
        return self._timed("stat", key, lambda: self._store.stat(key))

    def delete(self, *keys: str) -> None:  # noqa: D102
        self._timed("delete", "", lambda: self._store.delete(*keys))

    def objects(self, prefix: str = "") -> Iterator[ObjectInfo]:  # noqa: D102
        # Not timed: the time includes what the caller does between two objects.
        return self._store.objects(prefix)

    def presigned_url(self, key: str, *, seconds: float) -> str:  # noqa: D102
        return self._store.presigned_url(key, seconds=seconds)

    def expire_after(self, days: int) -> bool:  # noqa: D102
        return self._timed("expire_after", "", lambda: self._store.expire_after(days))

    def check(self) -> None:  # noqa: D102
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
