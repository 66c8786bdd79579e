"""Errors as answers: OpenAI's four keys below `/v1`, problem details (RFC 9457) below `/api`."""

import dataclasses
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from smalti.disclosure import Disclosure
from smalti.errors import InvalidInputError, ModelNotFoundError, QuotaExceededError, RemoteError
from smalti.rpc.errors import disclose_call
from smalti.rpc.reasons import reason_of

NATIVE: Final = "/api"
"""The paths whose errors are problem details."""

RETRIED: Final = (
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.SERVICE_UNAVAILABLE,
)
"""Statuses of requests that may succeed when they are sent again."""

_OPENAI_CODES: Final = {
    "CONTENT_POLICY": "content_policy_violation",
    "INVALID_INPUT": "invalid_value",
    "OVERLOADED": "rate_limit_exceeded",
    "UNAUTHENTICATED": "invalid_api_key",
    "requests_per_minute": "rate_limit_exceeded",
    "open_jobs": "rate_limit_exceeded",
    "candidates_per_day": "insufficient_quota",
    "stored_jobs": "insufficient_quota",
    "stored_files": "insufficient_quota",
    "stored_file_bytes": "insufficient_quota",
    "stored_bytes": "insufficient_quota",
}
"""Codes of `error.code` that differ from the name of the reason; those of a quota by its name."""
_RATES: Final = {"requests_per_minute": "requests", "candidates_per_day": "candidates"}
"""Quotas that are told in headers `x-ratelimit-*`, and their names there."""
MAX_RETRY_SECONDS: Final = 60.0
"""OpenAI's clients wait for no longer, and would ask again too early."""


class HttpError(HTTPException):
    """A refusal that only HTTP knows, such as a body that is too large."""

    def __init__(
        self, status: int, problem: str, *, reason: str, field: str | None = None, **headers: str
    ) -> None:
        """Refuses a request.

        Args:
            status: the status of the answer.
            problem: one line that says what is wrong.
            reason: a name for programs, such as "BODY_TOO_LARGE".
            field: the field or header that cannot be used.
            **headers: headers of the answer.
        """
        super().__init__(status, problem, headers)
        self.reason = reason
        self.field = field


class UnknownFieldError(InvalidInputError):
    """The request has a field that does not exist."""

    def __init__(self, field: str) -> None:
        super().__init__(field, "there is no such parameter; see /docs for those there are")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failure:
    """An error as it is answered."""

    status: int
    message: str
    reason: str
    """The name of the reason, such as "INVALID_INPUT"."""
    field: str | None = None
    """The field of the request that cannot be used."""
    retry_after: float | None = None
    error_id: str = ""
    """The id under which the log has the cause of an unexpected error."""
    quota: str = ""
    """The limit of the tenant that is used up, such as "requests_per_minute"."""
    limit: int = 0
    """The limit itself."""
    left: int = 0
    """What is left of it."""
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def openai(self) -> dict[str, Any]:
        """The body of the OpenAI API."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        kind = "rate_limit_error" if self.status == HTTPStatus.TOO_MANY_REQUESTS else kind
        code = _OPENAI_CODES.get(self.quota or self.reason, self.reason.lower())
        return {"error": {"message": self.message, "type": kind, "param": self.field, "code": code}}

    @property
    def problem(self) -> dict[str, Any]:
        """The body of our own API: problem details with the reason and the field."""
        more = {"field": self.field, "retry_after": self.retry_after, "error_id": self.error_id}
        return {
            "type": "about:blank",
            "title": _title(self.status),
            "status": self.status,
            "detail": self.message,
            "reason": self.reason,
            **{name: value for name, value in more.items() if value},
            **({"quota": self.quota, "limit": self.limit, "left": self.left} if self.quota else {}),
        }

    def response(self, path: str) -> Response:
        """Returns the answer to a request for a path."""
        # OpenAI's clients would also repeat requests that fail again, such as one whose key belongs to another.
        is_soon = self.retry_after is None or self.retry_after <= MAX_RETRY_SECONDS
        headers = {"x-should-retry": str(self.status in RETRIED and is_soon).lower(), **self.headers}
        if self.status == HTTPStatus.UNAUTHORIZED:
            headers["www-authenticate"] = "Bearer"
        if self.retry_after is not None:
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after)))
            headers["retry-after-ms"] = str(max(1, round(self.retry_after * 1000)))
            if unit := _RATES.get(self.quota):
                headers[f"x-ratelimit-limit-{unit}"] = str(self.limit)
                headers[f"x-ratelimit-remaining-{unit}"] = str(self.left)
                headers[f"x-ratelimit-reset-{unit}"] = f"{max(1, math.ceil(self.retry_after))}s"
        if path == NATIVE or path.startswith(f"{NATIVE}/"):
            return JSONResponse(self.problem, self.status, headers, "application/problem+json")
        return JSONResponse(self.openai, self.status, headers)


def failure_of(error: BaseException, *, during: str = "") -> Failure:
    """Returns the answer for an exception. An unexpected one is logged under an id, and the client sees only the id.

    Args:
        error: the exception.
        during: what failed, for the log.
    """
    if isinstance(error, HTTPException):
        return Failure(
            status=error.status_code,
            message=error.detail,
            reason=getattr(error, "reason", _title(error.status_code).upper().replace(" ", "_")),
            field=getattr(error, "field", None),
            headers=error.headers or {},
        )
    reason = reason_of(error)
    if isinstance(error, RemoteError) and error.reason:
        # The gateway has said what callers are told.
        disclosed = Disclosure(text=str(error), error_id=error.error_id)
    else:
        disclosed = disclose_call(error, during=during or "a request")
    status, name = reason.http_status, reason.name
    where = error.field if isinstance(error, InvalidInputError) else None
    if isinstance(error, ModelNotFoundError):
        where = "model"
    if isinstance(error, UnknownFieldError):
        name = "UNKNOWN_PARAMETER"
    retry_after = getattr(error, "retry_after", None)
    if status == HTTPStatus.SERVICE_UNAVAILABLE and retry_after is None:
        retry_after = 1.0
    return Failure(
        status=status,
        message=disclosed.text,
        reason=name,
        field=where,
        retry_after=retry_after,
        error_id=disclosed.error_id,
        **_quota_of(error),
    )


def _quota_of(error: BaseException) -> dict[str, Any]:
    if not isinstance(error, QuotaExceededError):
        return {}
    return {"quota": error.quota, "limit": error.limit, "left": error.left}


def _title(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Client Closed Request"  # 499, which nginx has introduced.
