"""What others are told of an error: never hosts, paths, or the words of foreign exceptions, which stay in the log."""

import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from smalti.errors import (
    BrokerUnavailableError,
    DatabaseUnavailableError,
    EngineFailedError,
    ModelError,
    SmaltiError,
    StoreUnavailableError,
)

log = logging.getLogger(__name__)

_EXPECTED: Final[Mapping[type[SmaltiError], str]] = {
    BrokerUnavailableError: "the message broker is not available",
    DatabaseUnavailableError: "the database is not available",
    StoreUnavailableError: "the object store is not available",
}
"""Errors of what a service needs, whose own texts name hosts and quote other libraries."""
_UNEXPECTED: Final[Mapping[type[SmaltiError], str]] = {
    EngineFailedError: "the engine has stopped",
    ModelError: "the model cannot be used",
}


@dataclass(frozen=True, kw_only=True)
class Disclosure:
    """What others are told of an error."""

    text: str
    error_id: str = ""
    """The id under which the log has the cause; empty if the text is all there is."""


def disclose(
    error: BaseException, *, during: str = "", instead: str = "", internal: bool = False
) -> Disclosure:
    """Returns what others are told of an error; logs what they are not told under an id.

    Args:
        error: the error.
        during: what failed, for the log.
        instead: what others are told instead of the error's own text, if that is foreign.
        internal: whether the text of an error of Smalti, too, is not meant for others.
    """
    expected, unexpected = instead or _text(_EXPECTED, error), _text(_UNEXPECTED, error)
    if isinstance(error, SmaltiError) and not (expected or unexpected or internal):
        return Disclosure(text=str(error))
    error_id = secrets.token_hex(8)
    if expected:
        log.warning("%s failed [%s]: %s", during or "a call", error_id, " ".join(str(error).split()))
    else:
        log.error("%s failed [%s]", during or "a call", error_id, exc_info=error)
    text = expected or unexpected or "internal error"
    return Disclosure(text=f"{text}; the service's log has the cause under {error_id}", error_id=error_id)


def _text(texts: Mapping[type[SmaltiError], str], error: BaseException) -> str:
    return next((text for kind, text in texts.items() if isinstance(error, kind)), "")
