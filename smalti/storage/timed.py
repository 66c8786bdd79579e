"""An object store whose calls are timed and recorded as spans."""

import time
from collections.abc import Callable
from typing import TypeVar

from opentelemetry.trace import SpanKind

from smalti.errors import DamagedObjectError, MissingObjectError, StoreUnavailableError
from smalti.storage.store import ObjectStore
from smalti.storage.wrapped import WrappedStore
from smalti.telemetry import Metrics, tracing

Result = TypeVar("Result")


class TimedStore(WrappedStore):
    """Wraps an `ObjectStore`."""

    def __init__(self, store: ObjectStore, metrics: Metrics) -> None:
        super().__init__(store)
        self._metrics = metrics

    def _call(self, op: str, key: str, call: Callable[[], Result]) -> Result:
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
