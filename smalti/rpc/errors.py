"""Conversion between the errors of Smalti and gRPC statuses with `google.rpc` details."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError, Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, QuotaFailure, ResourceInfo, RetryInfo
from google.rpc.status_pb2 import Status

from smalti.disclosure import Disclosure, disclose
from smalti.errors import (
    BatchNotFoundError,
    DrainingError,
    EngineFailedError,
    InvalidInputError,
    JobNotFoundError,
    ModelNotFoundError,
    NotSupportedError,
    OverloadedError,
    PictureNotFoundError,
    QuotaExceededError,
    RemoteError,
    RequestCancelledError,
    RequestExpiredError,
    RequestIdReusedError,
    ServiceError,
    SmaltiError,
    StoredFileNotFoundError,
    UnavailableError,
)
from smalti.rpc.reasons import BY_NAME, DOMAIN, INTERNAL, MODEL_UNUSABLE, reason_of

DETAILS_KEY = "grpc-status-details-bin"
"""The key of the trailing metadata that holds the `google.rpc.Status`."""

# Many clients limit the trailing metadata to 8 KiB. It holds the text three times: in gRPC's message, where a byte may
# take three, in the status, and in the field violation.
MAX_TEXT_LENGTH = 512
MAX_NAME_LENGTH = 128

M = TypeVar("M", bound=Message)

_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def status_of(error: BaseException, *, during: str = "") -> Status:
    """Returns the status of an exception, for calls and for `Job.error`.

    What is not meant for callers is logged under an id, which is all they see of it; see `smalti.disclosure`.

    Args:
        error: the exception.
        during: what failed, for the log.
    """
    reason = reason_of(error)
    info = ErrorInfo(reason=reason.name, domain=DOMAIN)
    if isinstance(error, EngineFailedError):
        # The engine has logged the cause once, for all its requests.
        text = "the engine has stopped; try again, another instance may answer"
    else:
        disclosed = disclose_call(error, during=during)
        text = shortened(disclosed.text, MAX_TEXT_LENGTH)
        if disclosed.error_id:
            info.metadata["error_id"] = disclosed.error_id
    status = Status(code=reason.code.value[0], message=text)
    details: list[Message] = [info]
    if isinstance(error, InvalidInputError):
        violation = BadRequest.FieldViolation(
            field=shortened(error.field, MAX_NAME_LENGTH),
            description=shortened(error.problem, MAX_TEXT_LENGTH),
        )
        details.append(BadRequest(field_violations=[violation]))
    if isinstance(error, QuotaExceededError):
        info.metadata["left"] = str(error.left)
        details.append(
            QuotaFailure(
                violations=[
                    QuotaFailure.Violation(
                        subject="tenant",
                        description=text,
                        quota_metric=error.quota,
                        quota_value=error.limit,
                    )
                ]
            )
        )
    if reason.resource:
        name = shortened(str(getattr(error, "name", "")), MAX_NAME_LENGTH)
        details.append(ResourceInfo(resource_type=reason.resource, resource_name=name))
    retry_after = getattr(error, "retry_after", None)
    if retry_after is not None:
        delay = RetryInfo()
        delay.retry_delay.FromNanoseconds(round(retry_after * 1e9))
        details.append(delay)
    for detail in details:
        status.details.add().Pack(detail)
    return status


def disclose_call(error: BaseException, *, during: str = "") -> Disclosure:
    """Returns what callers are told of an exception; see `smalti.disclosure`.

    If it comes from a call to another server, and gRPC itself made it, its text would name that server's address.

    Args:
        error: the exception.
        during: what failed, for the log.
    """
    call = error.__cause__
    is_foreign = isinstance(error, ServiceError) and isinstance(call, grpc.RpcError) and not sent_status(call)
    instead = "a service that is needed is not available" if is_foreign else ""
    return disclose(error, during=during, instead=instead, internal=reason_of(error) is INTERNAL)


def error_of_status(status: Status) -> SmaltiError:
    """Returns the exception for the status of a call or of `Job.error`."""
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    info = _detail(status.details, ErrorInfo)
    text = status.message or code.name
    if info is None or info.domain != DOMAIN or info.reason not in BY_NAME:
        return _without_reason(code, text, info.reason if info else "")
    make = _MAKERS.get(info.reason)
    if make is not None:
        return make(text, status)
    error = BY_NAME[info.reason].error
    if error is None or info.reason == MODEL_UNUSABLE.name:
        return RemoteError(
            text, code=code.name, reason=info.reason, error_id=info.metadata.get("error_id", "")
        )
    return error(text)


def error_of(error: grpc.RpcError) -> SmaltiError:
    """Returns the exception for a failed call of a blocking or an asynchronous channel."""
    status = sent_status(error)
    if status is not None:
        return error_of_status(status)
    code = error.code() if hasattr(error, "code") else grpc.StatusCode.UNKNOWN
    text = error.details() if hasattr(error, "details") else str(error)
    return _without_reason(code, shortened(text or code.name, MAX_TEXT_LENGTH), "")


@contextmanager
def translated() -> Iterator[None]:
    """Raises the errors of Smalti in place of gRPC's: `with translated(): await stub.Encode(request)`.

    Raises:
        SmaltiError: the call failed.
    """
    try:
        yield
    except grpc.RpcError as error:
        raise error_of(error) from error


@contextmanager
def within(path: str) -> Iterator[None]:
    """Prefixes the field of an `InvalidInputError` with the path of a message, as in "parameters.prompt".

    Raises:
        InvalidInputError: the block raised one.
    """
    try:
        yield
    except InvalidInputError as error:
        raise InvalidInputError(f"{path}.{error.field}", error.problem) from error


def shortened(text: str, longest: int) -> str:
    """Returns a text as one line of at most `longest` bytes in UTF-8."""
    line = " ".join(text.split())
    if len(line.encode(errors="replace")) <= longest:
        return line.encode(errors="replace").decode()
    return line.encode(errors="replace")[: longest - 3].decode(errors="ignore") + "…"


def _detail(details: Iterable[AnyMessage], kind: type[M]) -> M | None:
    """Returns the first detail of a kind; None if there is none or it is damaged."""
    for packed in details:
        found = kind()
        try:
            if packed.Unpack(found):
                return found
        except DecodeError:
            continue
    return None


def sent_status(error: grpc.RpcError) -> Status | None:
    """Returns the status that a server has sent; None if gRPC itself, or something between, made the error."""
    # Blocking channels give a tuple of pairs, asynchronous ones an object of their own.
    metadata: Iterable[tuple[str, str | bytes]] = getattr(error, "trailing_metadata", tuple)() or ()
    for key, value in metadata:
        if key == DETAILS_KEY and isinstance(value, bytes):
            try:
                return Status.FromString(value)
            except DecodeError:
                return None
    return None


def _without_reason(code: grpc.StatusCode, text: str, reason: str) -> SmaltiError:
    """Returns the exception for a status that gRPC itself or another kind of server has made."""
    match code:
        case grpc.StatusCode.UNAVAILABLE:
            return UnavailableError(text)
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return RequestExpiredError(text)
        case grpc.StatusCode.CANCELLED:
            return RequestCancelledError(text)
        case grpc.StatusCode.UNIMPLEMENTED:
            return NotSupportedError(text)
    return RemoteError(text, code=code.name, reason=reason)


def _invalid(text: str, status: Status) -> SmaltiError:
    request = _detail(status.details, BadRequest)
    if request is None or not request.field_violations:
        return InvalidInputError("request", text)
    violation = request.field_violations[0]
    return InvalidInputError(violation.field, violation.description)


def _seconds(status: Status) -> float | None:
    delay = _detail(status.details, RetryInfo)
    return delay.retry_delay.ToNanoseconds() / 1e9 if delay is not None else None


def _quota(text: str, status: Status) -> SmaltiError:
    failure, info = _detail(status.details, QuotaFailure), _detail(status.details, ErrorInfo)
    violation = failure.violations[0] if failure and failure.violations else QuotaFailure.Violation()
    left = info.metadata.get("left", "") if info else ""
    return QuotaExceededError(
        text,
        _seconds(status) or 1.0,
        quota=violation.quota_metric,
        limit=violation.quota_value,
        left=int(left) if left.isdecimal() else 0,
    )


def _name(status: Status) -> str:
    resource = _detail(status.details, ResourceInfo)
    return resource.resource_name if resource is not None else ""


# Exceptions that need more than the text.
_MAKERS: dict[str, Callable[[str, Status], SmaltiError]] = {
    "INVALID_INPUT": _invalid,
    "MODEL_NOT_FOUND": lambda text, status: ModelNotFoundError(text, _name(status)),
    "JOB_NOT_FOUND": lambda text, status: JobNotFoundError(_name(status), text),
    "PICTURE_NOT_FOUND": lambda text, status: PictureNotFoundError(_name(status), text),
    "BATCH_NOT_FOUND": lambda text, status: BatchNotFoundError(_name(status), text),
    "FILE_NOT_FOUND": lambda text, status: StoredFileNotFoundError(_name(status), text),
    "REQUEST_ID_REUSED": lambda text, status: RequestIdReusedError(_name(status), text),
    "OVERLOADED": lambda text, status: OverloadedError(text, _seconds(status) or 1.0),
    "QUOTA_EXCEEDED": _quota,
    "DRAINING": lambda text, status: DrainingError(text, _seconds(status)),
    "ENGINE_STOPPED": lambda text, status: EngineFailedError(text, _seconds(status)),
    "DEPENDENCY_UNAVAILABLE": lambda text, status: UnavailableError(text, _seconds(status)),
}
