"""The bodies of the Batch API."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from smalti.services.web.openai.files import ExpiresAfter, Identifier
from smalti.services.web.openai.pages import Listed, Page
from smalti.validation import Strict

Endpoint = Literal["/v1/images/generations", "/v1/images/edits"]
Status = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]
MAX_METADATA = 16


class BatchRequest(Strict):
    """A file of requests that are carried out as capacity is left."""

    input_file_id: Identifier
    """A file with the purpose `batch`: a request in each line."""
    endpoint: Endpoint
    """The endpoint of all requests."""
    completion_window: Literal["24h"]
    """The time limit. What is drawn by then stays."""
    metadata: Annotated[dict[str, str], Field(max_length=MAX_METADATA)] | None = None
    """Kept as the labels of the batch: keys of a-z, 0-9, `_`, `-`, `.` and `/`."""
    output_expires_after: ExpiresAfter | None = None
    """When the files with the answers are deleted; 30 days after the batch has ended if it is missing."""


class RequestCounts(BaseModel):
    """Requests by what became of them."""

    total: int
    completed: int
    failed: int


class BatchError(BaseModel):
    """Why a batch has failed."""

    code: str
    line: int | None
    """The line of the input."""
    message: str
    param: str | None


class BatchErrors(BaseModel):
    """Why a batch has failed."""

    object: Literal["list"] = "list"
    data: list[BatchError]


class BatchObject(Listed):
    """A batch."""

    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: Status
    output_file_id: str | None
    """The file with the answers."""
    error_file_id: str | None
    """The file with the requests that failed."""
    created_at: int
    in_progress_at: int | None
    expires_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    metadata: dict[str, str] | None


class BatchList(Page[BatchObject]):
    """A page of batches."""
