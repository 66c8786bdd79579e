"""The log of a process: one line for each event, as JSON or for the console.

All loggers, including those of libraries, write through one handler. Job, chunk, stage, request and trace are bound to
the thread or task that does the work, and appear in every line that it logs.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import structlog
from opentelemetry import trace
from structlog.typing import EventDict, Processor, WrappedLogger

from smalti.settings import read_settings
from smalti.telemetry import audit
from smalti.telemetry.settings import LogFormat, LogLevel, LogSettings

# Their lines for every message and call at level info repeat ours.
VERBOSE = ("celery", "kombu", "amqp", "httpx", "urllib3", "jax", "opentelemetry")


def set_up(service: str, settings: LogSettings | None = None, stream: TextIO | None = None) -> None:
    """Sets up logging for this process, replacing any earlier setup.

    Args:
        service: the field `service` of every line.
        settings: None reads them from the environment.
        stream: the output; None is standard error.

    Raises:
        InvalidInputError: a setting is invalid.
    """
    settings = settings or read_settings(LogSettings)
    stream = stream or sys.stderr
    json = settings.format is LogFormat.JSON or (settings.format is None and not stream.isatty())

    def add_service(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        return {**event, "service": service}

    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        add_trace,
        add_service,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    json_formatter = audit.json_formatter(*shared)
    console = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.dev.ConsoleRenderer(
                colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback
            ),
        ],
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(json_formatter if json else console)
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    logging.basicConfig(handlers=[handler], level=level, force=True)
    for name in VERBOSE:
        logging.getLogger(name).setLevel(
            level if settings.level is LogLevel.DEBUG else max(level, logging.WARNING)
        )
    audit.set_up(settings.audit, json_formatter)
    logging.captureWarnings(True)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
    )


def add_trace(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Adds the ids of the current trace and span, if there is one."""
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event.setdefault("trace_id", trace.format_trace_id(context.trace_id))
        event.setdefault("span_id", trace.format_span_id(context.span_id))
    return event


@contextmanager
def about(**fields: Any) -> Iterator[None]:
    """Adds fields to every line that this thread or task logs in the block; those that are None are left out."""
    with structlog.contextvars.bound_contextvars(
        **{name: value for name, value in fields.items() if value is not None}
    ):
        yield
