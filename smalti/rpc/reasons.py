"""Every reason why a call can fail, with its gRPC code and HTTP status."""

from dataclasses import dataclass
from http import HTTPStatus

import grpc

from smalti.errors import (
    AttemptsExhaustedError,
    AuthenticationError,
    BatchNotFoundError,
    DrainingError,
    EngineFailedError,
    InvalidInputError,
    JobNotFoundError,
    JobNotSucceededError,
    ModelError,
    ModelMismatchError,
    ModelNotFoundError,
    NotSupportedError,
    OverloadedError,
    PermissionDeniedError,
    PictureNotFoundError,
    QuotaExceededError,
    RefusedByPolicyError,
    RequestCancelledError,
    RequestExpiredError,
    RequestIdReusedError,
    SmaltiError,
    StoredFileNotFoundError,
    UnavailableError,
    WrongStateError,
)

DOMAIN = "smalti"
"""The domain of every `google.rpc.ErrorInfo` that Smalti sends."""

# nginx's status for a client that has disconnected; HTTP itself has none.
CLIENT_CLOSED_REQUEST = 499


@dataclass(frozen=True)
class Reason:
    """Why a call failed."""

    name: str
    """`google.rpc.ErrorInfo.reason`: the name of a value of `smalti.v1.ErrorReason` without its prefix."""
    code: grpc.StatusCode
    http_status: int
    error: type[SmaltiError] | None = None
    """The exception; None for unexpected errors."""
    resource: str = ""
    """The type in `google.rpc.ResourceInfo`; empty if none is sent."""


def _reason(
    name: str,
    code: grpc.StatusCode,
    http_status: int,
    error: type[SmaltiError] | None,
    resource: str = "",
) -> Reason:
    return Reason(name, code, int(http_status), error, resource)


_Code, _Http = grpc.StatusCode, HTTPStatus

INTERNAL = _reason("INTERNAL", _Code.INTERNAL, _Http.INTERNAL_SERVER_ERROR, None)
MODEL_UNUSABLE = _reason("MODEL_UNUSABLE", _Code.INTERNAL, _Http.INTERNAL_SERVER_ERROR, ModelError)

# The first match counts, so a class comes before its base classes.
REASONS = (
    _reason("INVALID_INPUT", _Code.INVALID_ARGUMENT, _Http.BAD_REQUEST, InvalidInputError),
    _reason("MODEL_NOT_FOUND", _Code.NOT_FOUND, _Http.NOT_FOUND, ModelNotFoundError, resource="model"),
    _reason("JOB_NOT_FOUND", _Code.NOT_FOUND, _Http.NOT_FOUND, JobNotFoundError, resource="job"),
    _reason("PICTURE_NOT_FOUND", _Code.NOT_FOUND, _Http.NOT_FOUND, PictureNotFoundError, resource="picture"),
    _reason("BATCH_NOT_FOUND", _Code.NOT_FOUND, _Http.NOT_FOUND, BatchNotFoundError, resource="batch"),
    _reason("FILE_NOT_FOUND", _Code.NOT_FOUND, _Http.NOT_FOUND, StoredFileNotFoundError, resource="file"),
    _reason("REQUEST_ID_REUSED", _Code.ALREADY_EXISTS, _Http.CONFLICT, RequestIdReusedError, resource="job"),
    _reason("JOB_NOT_SUCCEEDED", _Code.FAILED_PRECONDITION, _Http.CONFLICT, JobNotSucceededError),
    _reason("WRONG_STATE", _Code.FAILED_PRECONDITION, _Http.CONFLICT, WrongStateError),
    _reason("MODEL_MISMATCH", _Code.FAILED_PRECONDITION, _Http.CONFLICT, ModelMismatchError),
    _reason("NOT_SUPPORTED", _Code.UNIMPLEMENTED, _Http.NOT_IMPLEMENTED, NotSupportedError),
    _reason("QUOTA_EXCEEDED", _Code.RESOURCE_EXHAUSTED, _Http.TOO_MANY_REQUESTS, QuotaExceededError),
    _reason("OVERLOADED", _Code.RESOURCE_EXHAUSTED, _Http.TOO_MANY_REQUESTS, OverloadedError),
    _reason("DRAINING", _Code.UNAVAILABLE, _Http.SERVICE_UNAVAILABLE, DrainingError),
    _reason("ENGINE_STOPPED", _Code.UNAVAILABLE, _Http.SERVICE_UNAVAILABLE, EngineFailedError),
    _reason("DEPENDENCY_UNAVAILABLE", _Code.UNAVAILABLE, _Http.SERVICE_UNAVAILABLE, UnavailableError),
    _reason("CANCELLED", _Code.CANCELLED, CLIENT_CLOSED_REQUEST, RequestCancelledError),
    _reason("EXPIRED", _Code.DEADLINE_EXCEEDED, _Http.GATEWAY_TIMEOUT, RequestExpiredError),
    _reason("ATTEMPTS_EXHAUSTED", _Code.INTERNAL, _Http.INTERNAL_SERVER_ERROR, AttemptsExhaustedError),
    # 400, as OpenAI's API answers.
    _reason("CONTENT_POLICY", _Code.PERMISSION_DENIED, _Http.BAD_REQUEST, RefusedByPolicyError),
    _reason("UNAUTHENTICATED", _Code.UNAUTHENTICATED, _Http.UNAUTHORIZED, AuthenticationError),
    _reason("NOT_PERMITTED", _Code.PERMISSION_DENIED, _Http.FORBIDDEN, PermissionDeniedError),
    MODEL_UNUSABLE,
    INTERNAL,
)
"""Every reason; `errors.proto` says what each means for a client."""

BY_NAME = {reason.name: reason for reason in REASONS}


def reason_of(error: BaseException) -> Reason:
    """Returns the reason of an exception; INTERNAL for any other than the errors of Smalti."""
    return next(
        (reason for reason in REASONS if reason.error is not None and isinstance(error, reason.error)),
        INTERNAL,
    )
