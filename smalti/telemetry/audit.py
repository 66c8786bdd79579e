"""The audit log: who was refused, who used which key, and what admins did. One JSON object a line, without prompts.

It is part of the log of the process, or, if `SMALTI_LOG_AUDIT` names a file, in that alone.
"""

import logging
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any, Final

import structlog

from smalti.errors import InvalidInputError

__all__ = ["NAME", "json_formatter", "set_up", "write"]

NAME: Final = "smalti.audit"
"""The logger's name; lines of the log of a process have it as `logger`."""

_log = logging.getLogger(NAME)


def write(event: str, **fields: Any) -> None:
    """Writes a line; fields that are None are left out."""
    _log.info(event, extra={name: value for name, value in fields.items() if value is not None})


def set_up(file: Path | None, formatter: logging.Formatter) -> None:
    """Says where the lines go; to be called once the log is set up.

    Args:
        file: the file to which they are appended; None for the log of the process. It may be renamed while it is used.
        formatter: makes the lines of a file.

    Raises:
        InvalidInputError: the file cannot be written.
    """
    for handler in _log.handlers[:]:
        _log.removeHandler(handler)
        handler.close()
    _log.setLevel(logging.INFO)  # Whatever the level of the log is.
    _log.propagate = file is None
    if file is None:
        return
    try:
        file.touch(mode=0o600)
        handler = WatchedFileHandler(file, encoding="utf-8")
    except OSError as error:
        raise InvalidInputError("SMALTI_LOG_AUDIT", f"{file} cannot be written: {error.strerror}") from None
    handler.setFormatter(formatter)
    _log.addHandler(handler)


def json_formatter(*before: Any) -> structlog.stdlib.ProcessorFormatter:
    """Returns what makes a JSON object of a line, here and in the log of a process.

    Args:
        before: add fields to those of the line; by default, the time is added.
    """
    fields = before or (structlog.stdlib.ExtraAdder(), structlog.processors.TimeStamper(fmt="iso", utc=True))
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=fields,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(default=str),
        ],
    )
