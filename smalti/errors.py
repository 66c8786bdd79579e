"""What can go wrong, as exceptions whose text is one line that a user can act on.

SmaltiError
├── InvalidInputError      a value given by the user: the field, what is wrong with it, the remedy
├── ModelError             a model folder, or one of its files, that cannot be used
│   ├── ConfigError        a configuration that asks for what the published models do not have
│   └── CheckpointError    a file of weights that is damaged, truncated or of another model
├── ModelNotFoundError     no model of that name
└── ServiceError           what a service answers in place of a result
    ├── JobNotFoundError       no job of that name, or not any more
    ├── PictureNotFoundError   no such picture, or not any more
    ├── RequestIdReusedError   a request_id that belongs to another request
    ├── JobNotSucceededError   pictures of a job that has none
    ├── ModelMismatchError     work of another model than the one that is loaded
    ├── NotSupportedError      what the loaded model, or this version, cannot do
    ├── OverloadedError        all places are taken; says when to come again
    ├── UnavailableError       something that is needed does not answer; says when to come again, if it is known
    │   └── DrainingError          the service is about to stop
    ├── AttemptsExhaustedError work that failed as often as it is tried
    └── RemoteError            anything else that a server has answered
"""


class SmaltiError(Exception):
    """The base of every error that Smalti raises on purpose; its text is one line."""


class InvalidInputError(SmaltiError):
    """A value given by the user cannot be used; `field` is its name on the surface where it was given."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class ModelError(SmaltiError):
    """A model folder, or a file in it, cannot be used."""


class ConfigError(ModelError):
    """A configuration asks for an option that the published models do not have."""


class CheckpointError(ModelError):
    """A file of weights is damaged, truncated, or does not fit its configuration."""


class ModelNotFoundError(SmaltiError):
    """No model has the name, and no folder has the path, that was asked for; `name` is it, where it is known apart."""

    def __init__(self, problem: str, name: str = "") -> None:
        super().__init__(problem)
        self.name = name


class ServiceError(SmaltiError):
    """What a service answers in place of a result; `smalti.rpc` has the status of each."""


class JobNotFoundError(ServiceError):
    """There is no such job, or it has been deleted; `name` is its id."""

    def __init__(self, name: str, problem: str = "") -> None:
        super().__init__(problem or f"there is no job {name}, or it has been deleted")
        self.name = name


class PictureNotFoundError(ServiceError):
    """The job has no such picture, or it is no longer kept; `name` says which."""

    def __init__(self, name: str, problem: str = "") -> None:
        super().__init__(problem or f"there is no picture {name}, or it is no longer kept")
        self.name = name


class RequestIdReusedError(ServiceError):
    """A request_id was used before, for another request; `name` is the id of the job that was made then."""

    def __init__(self, name: str, problem: str = "") -> None:
        super().__init__(
            problem or f"the request_id was used for another request, job {name}; make a new one"
        )
        self.name = name


class JobNotSucceededError(ServiceError):
    """The job has not succeeded, so it has no pictures."""


class ModelMismatchError(ServiceError):
    """An encoding or tokens come from another model than the one that is loaded."""


class NotSupportedError(ServiceError):
    """The loaded model, or this version of the service, cannot do what is asked."""


class OverloadedError(ServiceError):
    """All places are taken; `retry_after` is the time in seconds after which there should be room."""

    def __init__(self, problem: str, retry_after: float) -> None:
        super().__init__(problem)
        self.retry_after = retry_after


class UnavailableError(ServiceError):
    """Something that is needed does not answer; `retry_after` is the time in seconds to wait, where it is known."""

    def __init__(self, problem: str, retry_after: float | None = None) -> None:
        super().__init__(problem)
        self.retry_after = retry_after


class DrainingError(UnavailableError):
    """The service is about to stop and takes nothing new; another instance will."""


class AttemptsExhaustedError(ServiceError):
    """The work failed as often as it is tried, each time with the loss of the process that did it."""


class RemoteError(ServiceError):
    """What a server has answered that has no class of its own: a fault of its own, or a refusal by gRPC."""

    def __init__(self, problem: str, *, code: str, reason: str = "", error_id: str = "") -> None:
        """Keeps what the server said.

        Args:
            problem: the status' message.
            code: the name of the status' code, such as "INTERNAL".
            reason: the reason of the status' ErrorInfo, if it has one.
            error_id: what the server's log has beside the cause, if it says.
        """
        super().__init__(f"{problem} [{error_id}]" if error_id and error_id not in problem else problem)
        self.code = code
        self.reason = reason
        self.error_id = error_id


class SmaltiWarning(UserWarning):
    """Something a user should know, though the work goes on; its text is one line."""
