"""Batches of the gateway as the Batch API has them."""

import re
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from smalti.errors import InvalidInputError
from smalti.rpc.errors import error_of_status
from smalti.services.web.failures import failure_of
from smalti.services.web.openai.batches.schema import (
    BatchError,
    BatchErrors,
    BatchObject,
    RequestCounts,
    Status,
)
from smalti.v1.batch_pb2 import (
    BATCH_STATE_CANCELLED,
    BATCH_STATE_EXPIRED,
    BATCH_STATE_FAILED,
    BATCH_STATE_FINISHING,
    BATCH_STATE_PAUSED,
    BATCH_STATE_PLANNING,
    BATCH_STATE_RUNNING,
    BATCH_STATE_SUCCEEDED,
    Batch,
)

WINDOW: Final = "24h"
WINDOW_SECONDS: Final = 24 * 3600.0
_STATUSES: Final[dict[int, Status]] = {
    BATCH_STATE_PLANNING: "validating",
    BATCH_STATE_RUNNING: "in_progress",
    BATCH_STATE_PAUSED: "in_progress",
    BATCH_STATE_FINISHING: "finalizing",
    BATCH_STATE_SUCCEEDED: "completed",
    BATCH_STATE_FAILED: "failed",
    BATCH_STATE_CANCELLED: "cancelled",
    BATCH_STATE_EXPIRED: "expired",
}
_LINE: Final = re.compile(r"line (?P<line>\d+)(?:, column '(?P<column>[^']*)')?: (?P<problem>.*)", re.DOTALL)
"""What is wrong with a line of an input."""


def batch_object(batch: Batch) -> BatchObject:
    """Returns a batch as the API has it."""
    status = status_of(batch)
    end = _seconds(batch, "end_time")
    finishing = _seconds(batch, "finish_time")
    is_cancelled = status in ("cancelling", "cancelled")
    progress = batch.progress
    return BatchObject(
        id=batch.id,
        endpoint=batch.name,
        model=batch.parameters.model.name or None,
        errors=_errors(batch) if status == "failed" else None,
        input_file_id=batch.input.file_id,
        completion_window=WINDOW,
        status=status,
        output_file_id=batch.output_file_id or None,
        error_file_id=batch.error_file_id or None,
        created_at=batch.create_time.seconds,
        in_progress_at=_seconds(batch, "start_time"),
        expires_at=_seconds(batch, "expire_time"),
        finalizing_at=None if is_cancelled else finishing,
        completed_at=end if status == "completed" else None,
        failed_at=end if status == "failed" else None,
        expired_at=end if status == "expired" else None,
        cancelling_at=finishing or end if is_cancelled else None,
        cancelled_at=end if status == "cancelled" else None,
        request_counts=RequestCounts(
            total=progress.prompts,
            completed=progress.prompts_drawn,
            failed=progress.prompts_failed + progress.prompts_invalid,
        ),
        metadata=dict(batch.labels) or None,
    )


def status_of(batch: Batch) -> Status:
    """Returns the state of a batch as the API names it."""
    if batch.state == BATCH_STATE_FINISHING and batch.ending == BATCH_STATE_CANCELLED:
        return "cancelling"
    return _STATUSES.get(batch.state, "in_progress")


def _errors(batch: Batch) -> BatchErrors:
    error = error_of_status(batch.error)
    problem = error.problem if isinstance(error, InvalidInputError) else str(error)
    found = _LINE.fullmatch(problem)
    told = BatchError(
        code=failure_of(error).openai["error"]["code"],
        line=int(found["line"]) if found else None,
        message=problem,
        param=found["column"] if found else getattr(error, "field", None),
    )
    return BatchErrors(data=[told])


def _seconds(batch: Batch, name: str) -> int | None:
    if not batch.HasField(name):  # type: ignore[arg-type]
        return None
    time: Timestamp = getattr(batch, name)
    return time.seconds
