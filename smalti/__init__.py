"""Smalti: prompts to pictures, laid one tile at a time.

The names below are what Smalti offers to Python programs. The pipeline and the clients are imported when they are first
used, so that `import smalti` is quick and needs none of the extras.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from smalti.errors import (
    AttemptsExhaustedError,
    AuthenticationError,
    BatchNotFoundError,
    BrokerUnavailableError,
    CheckpointError,
    ConfigError,
    DamagedObjectError,
    DatabaseUnavailableError,
    DrainingError,
    EngineError,
    EngineFailedError,
    EngineFullError,
    ExpiredMessageError,
    InvalidInputError,
    JobNotFoundError,
    JobNotSucceededError,
    MalformedMessageError,
    MessageError,
    MissingObjectError,
    ModelError,
    ModelMismatchError,
    ModelNotFoundError,
    NotSupportedError,
    OverloadedError,
    OversizedMessageError,
    PermissionDeniedError,
    PictureNotFoundError,
    QuotaExceededError,
    RefusedByPolicyError,
    RemoteError,
    RequestCancelledError,
    RequestExpiredError,
    RequestFailedError,
    RequestIdReusedError,
    ServerStartError,
    ServiceError,
    SmaltiError,
    SmaltiWarning,
    StorageError,
    StoredFileNotFoundError,
    StoreUnavailableError,
    UnavailableError,
    UnknownVersionError,
    WrongStateError,
)

if TYPE_CHECKING:
    from smalti.client import AsyncClient, Client
    from smalti.parameters import Refinement, SamplingParameters
    from smalti.pictures import Picture
    from smalti.pipeline import Pipeline

__version__ = "0.2.0"

__all__ = [
    "AsyncClient",
    "AttemptsExhaustedError",
    "AuthenticationError",
    "BatchNotFoundError",
    "BrokerUnavailableError",
    "CheckpointError",
    "Client",
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
    "Picture",
    "PictureNotFoundError",
    "Pipeline",
    "QuotaExceededError",
    "Refinement",
    "RefusedByPolicyError",
    "RemoteError",
    "RequestCancelledError",
    "RequestExpiredError",
    "RequestFailedError",
    "RequestIdReusedError",
    "SamplingParameters",
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
    "__version__",
]

# Name: its module, and the extra that the module needs.
_LAZY = {
    "AsyncClient": ("smalti.client", "client"),
    "Client": ("smalti.client", "client"),
    "Picture": ("smalti.pictures", None),
    "Pipeline": ("smalti.pipeline", "local"),
    "Refinement": ("smalti.parameters", None),
    "SamplingParameters": ("smalti.parameters", None),
}


# Hidden from type checkers, for which any attribute would exist otherwise.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Imports a name when it is first used (PEP 562)."""
        if name not in _LAZY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module, extra = _LAZY[name]
        try:
            value = getattr(import_module(module), name)
        except ModuleNotFoundError as error:
            library = (error.name or "").partition(".")[0]
            if extra is None or library in ("", __name__):
                raise
            problem = f"smalti.{name} needs {library}, which is not installed: pip install 'smalti[{extra}]'"
            raise ModuleNotFoundError(problem, name=error.name) from error
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
