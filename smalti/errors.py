"""The errors of Smalti. The text of each is one line that a user can act on.

    SmaltiError
    ├── InvalidInputError             a value from the user cannot be used; names the field and the remedy
    ├── ModelError                    a model folder, or a file in it, cannot be used
    │   ├── ConfigError               a configuration asks for an option that the published models do not have
    │   └── CheckpointError           a file of weights is damaged, truncated, or from another model
    ├── ModelNotFoundError            no model has this name or path
    ├── EngineError                   a request for pictures was not finished
    │   ├── EngineFullError           the generator's queue is full (also an OverloadedError)
    │   ├── EngineFailedError         the engine has stopped (also an UnavailableError)
    │   ├── RequestFailedError        the engine fails over this request, and over no other
    │   ├── RequestCancelledError     the request or job was cancelled
    │   └── RequestExpiredError       the time limit of the request or job ran out
    ├── StorageError                  an object cannot be read or written
    │   ├── MissingObjectError        no object has this key
    │   ├── DamagedObjectError        the content of an object is not what was written
    │   └── StoreUnavailableError     the store does not answer, or refuses (also an UnavailableError)
    ├── MessageError                  a message in a queue cannot be processed
    │   ├── MalformedMessageError     it is not valid for its version
    │   ├── OversizedMessageError     it is larger than a message may be
    │   ├── UnknownVersionError       its version is newer than this code
    │   └── ExpiredMessageError       nobody waits for its result any more
    ├── ServerStartError              `smalti up` cannot start a server
    └── ServiceError                  a service answers with an error instead of a result
        ├── JobNotFoundError          no job has this id, or the job was deleted
        ├── PictureNotFoundError      the job has no such picture, or the picture was deleted
        ├── BatchNotFoundError        no batch has this id or no such file, or the batch was deleted
        ├── StoredFileNotFoundError   no file has this id, or the file was deleted
        ├── WrongStateError           the batch, the file or the deployment is not in a state that permits the call
        ├── RequestIdReusedError      the request_id belongs to another request
        ├── JobNotSucceededError      the job has no pictures because it did not succeed
        ├── ModelMismatchError        the input was made by another model than the loaded one
        ├── NotSupportedError         the loaded model, or this version, cannot do this
        ├── OverloadedError           the service is full; says when to retry
        │   └── QuotaExceededError        the tenant has used up a limit; says which, and when to retry
        ├── UnavailableError          something that is needed does not answer; says when to retry, if known
        │   ├── DrainingError             the service is shutting down
        │   ├── BrokerUnavailableError    the broker does not answer
        │   └── DatabaseUnavailableError  the database does not answer, or cannot write
        ├── AttemptsExhaustedError    the work failed as many times as it may be tried
        ├── AuthenticationError       the call has no key, or none that is valid
        ├── PermissionDeniedError     the key is valid, and may not do this
        ├── RefusedByPolicyError      the operator's policy refuses the prompt, or every picture of the job
        └── RemoteError               any other error that a server answered

SmaltiWarning is for problems that do not stop the work.
"""

from typing import Any

__all__ = [
    "AttemptsExhaustedError",
    "AuthenticationError",
    "BatchNotFoundError",
    "BrokerUnavailableError",
    "CheckpointError",
    "ConfigError",
    "DamagedObjectError",
    "DatabaseUnavailableError",
    "DrainingError",
    "EngineError",
    "EngineFailedError",
    "EngineFullError",
    "ExpiredMessageError",
    "InvalidInputError",
    "JobNotFoundError",
    "JobNotSucceededError",
    "MalformedMessageError",
    "MessageError",
    "MissingObjectError",
    "ModelError",
    "ModelMismatchError",
    "ModelNotFoundError",
    "NotSupportedError",
    "OverloadedError",
    "OversizedMessageError",
    "PermissionDeniedError",
    "PictureNotFoundError",
    "QuotaExceededError",
    "RefusedByPolicyError",
    "RemoteError",
    "RequestCancelledError",
    "RequestExpiredError",
    "RequestFailedError",
    "RequestIdReusedError",
    "ServerStartError",
    "ServiceError",
    "SmaltiError",
    "SmaltiWarning",
    "StorageError",
    "StoreUnavailableError",
    "StoredFileNotFoundError",
    "UnavailableError",
    "UnknownVersionError",
    "WrongStateError",
]


class SmaltiError(Exception):
    """The base of every error that Smalti raises on purpose; its text is one line."""


class InvalidInputError(SmaltiError):
    """A value from the user cannot be used."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        """The name of the value where the user gave it: an argument, an option, a variable, a field of a request."""
        self.problem = problem
        """The problem with the value, and how to correct it."""


class ModelError(SmaltiError):
    """A model folder, or a file in it, cannot be used."""


class ConfigError(ModelError):
    """A configuration asks for an option that the published models do not have."""


class CheckpointError(ModelError):
    """A file of weights is damaged or truncated, or does not fit its configuration."""


class ModelNotFoundError(SmaltiError):
    """No model has the requested name, and no folder has the requested path."""

    def __init__(self, problem: str, name: str = "") -> None:
        super().__init__(problem)
        self.name = name
        """The requested model; empty if a server did not repeat it."""


class EngineError(SmaltiError):
    """A request for pictures was not finished."""


class RequestCancelledError(EngineError):
    """The request or job was cancelled."""


class RequestExpiredError(EngineError):
    """The time limit of the request or job ran out."""


class RequestFailedError(EngineError):
    """The engine fails over this request, and over no other; `__cause__` is the reason."""


class StorageError(SmaltiError):
    """An object cannot be read or written."""

    transient = False
    """Whether the same call may succeed later."""


class MissingObjectError(StorageError):
    """No object has this key."""

    def __init__(self, key: str) -> None:
        super().__init__(f"there is no object {key}")
        self.key = key
        """The requested key."""


class DamagedObjectError(StorageError):
    """The content of an object is not what was written, or not what was requested."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"the object {key} is damaged: {problem}")
        self.key = key
        """The object's key."""


class MessageError(SmaltiError):
    """A message in a queue cannot be processed."""


class MalformedMessageError(MessageError):
    """A message is not JSON, or not valid for its version."""


class OversizedMessageError(MessageError):
    """A message has more bytes than a message may have."""


class UnknownVersionError(MessageError):
    """A newer version of Smalti wrote the message; services of that version can read it."""

    def __init__(self, version: int, known: int) -> None:
        super().__init__(f"the message has version {version}; this service knows versions up to {known}")
        self.version = version
        """The version of the message."""


class ExpiredMessageError(MessageError):
    """Nobody waits for the result of a message any more."""

    def __init__(self, message: Any, age: float) -> None:
        super().__init__(f"the message expired {age:.0f} s ago")
        self.message = message
        """The message, one of `smalti.messages`."""


class ServerStartError(SmaltiError):
    """A server of `smalti up` cannot be started, or does not answer."""


class ServiceError(SmaltiError):
    """A service answers with an error instead of a result; `smalti.rpc.reasons` lists the status of each class."""


class JobNotFoundError(ServiceError):
    """No job has this id, or the job was deleted."""

    def __init__(self, name: str, problem: str = "") -> None:
        super().__init__(problem or f"there is no job {name}, or it has been deleted")
        self.name = name
        """The job's id."""


class PictureNotFoundError(ServiceError):
    """The job has no such picture, or the picture was deleted."""

    def __init__(self, name: str, problem: str = "") -> None:
        super().__init__(problem or f"there is no picture {name}, or it has been deleted")
        self.name = name
        """The requested picture."""


class BatchNotFoundError(ServiceError):
    """No batch has this id, the batch was deleted, or it has no such file."""

    def __init__(self, name: str, problem: str = "") -> None:
        super().__init__(problem or f"there is no batch {name}, or it has been deleted")
        self.name = name
        """The batch's id, or the id and the name of the file."""


class StoredFileNotFoundError(ServiceError):
    """No file has this id, or the file was deleted."""

    def __init__(self, name: str, problem: str = "") -> None:
        super().__init__(problem or f"there is no file {name}, or it has been deleted")
        self.name = name
        """The file's id."""


class WrongStateError(ServiceError):
    """The batch, the file or the deployment is not in a state that permits the call."""


class RequestIdReusedError(ServiceError):
    """The request_id was used before, for another request."""

    def __init__(self, name: str, problem: str = "") -> None:
        super().__init__(
            problem or f"the request_id was used for another request, job {name}; use a new request_id"
        )
        self.name = name
        """The id of the job that was created with this request_id."""


class JobNotSucceededError(ServiceError):
    """The job has no pictures because it did not succeed."""


class ModelMismatchError(ServiceError):
    """An encoding or image tokens were made by another model than the loaded one."""


class NotSupportedError(ServiceError):
    """The loaded model, or this version of the service, cannot do what was requested."""


class OverloadedError(ServiceError):
    """The service is full."""

    def __init__(self, problem: str, retry_after: float) -> None:
        super().__init__(problem)
        self.retry_after = retry_after
        """Time to wait before the next try, in seconds."""


class QuotaExceededError(OverloadedError):
    """The tenant has used up one of its limits."""

    def __init__(
        self, problem: str, retry_after: float, *, quota: str = "", limit: int = 0, left: int = 0
    ) -> None:
        super().__init__(problem, retry_after)
        self.quota = quota
        """The name of the limit, such as "requests_per_minute"."""
        self.limit = limit
        """The limit itself."""
        self.left = left
        """What is left of it."""


class UnavailableError(ServiceError):
    """Something that is needed does not answer."""

    def __init__(self, problem: str, retry_after: float | None = None) -> None:
        super().__init__(problem)
        self.retry_after = retry_after
        """Time to wait before the next try, in seconds; None if it is not known."""


class DrainingError(UnavailableError):
    """The service is shutting down and takes no new work; another instance will take it."""


class BrokerUnavailableError(UnavailableError):
    """The broker has not confirmed a message in time. It may have the message; sending it again is harmless."""


class DatabaseUnavailableError(UnavailableError):
    """The database does not answer, or cannot write; nothing was changed."""


class AttemptsExhaustedError(ServiceError):
    """The work failed as many times as it may be tried, each time because the process that did it was lost."""


class AuthenticationError(ServiceError):
    """The call has no key, token or certificate, or none that is valid."""


class PermissionDeniedError(ServiceError):
    """The caller is known, and may not do this."""


class RefusedByPolicyError(ServiceError):
    """The operator's policy refuses the prompt, or every picture of the job; repeating the request does not help."""


class RemoteError(ServiceError):
    """Any other error that a server answered: an internal error, or a refusal by gRPC itself."""

    def __init__(self, problem: str, *, code: str, reason: str = "", error_id: str = "") -> None:
        super().__init__(f"{problem} [{error_id}]" if error_id and error_id not in problem else problem)
        self.code = code
        """The name of the gRPC status code, such as "INTERNAL"."""
        self.reason = reason
        """The reason in the status' `google.rpc.ErrorInfo`; empty if it has none."""
        self.error_id = error_id
        """The id under which the server logged the cause; empty if it sent none."""


class EngineFullError(EngineError, OverloadedError):
    """The generator's queue is full."""

    def __init__(self, waiting: int, retry_after: float) -> None:
        super().__init__(
            f"{waiting} candidates are already waiting; try again in {retry_after:.0f} s", retry_after
        )


class EngineFailedError(EngineError, UnavailableError):
    """The engine has stopped, and unfinished requests are lost; `__cause__` is the reason."""

    def __init__(self, problem: str, retry_after: float | None = None, *, begun: bool = True) -> None:
        super().__init__(problem, retry_after)
        self.begun = begun
        """Whether the engine had begun the request, which then may be the cause."""


class StoreUnavailableError(StorageError, UnavailableError):
    """The store does not answer (transient), or refuses (not transient)."""

    def __init__(self, problem: str, *, transient: bool = True) -> None:
        super().__init__(problem)
        self.transient = transient


class SmaltiWarning(UserWarning):
    """A problem that does not stop the work; its text is one line."""
