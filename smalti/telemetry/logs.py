"""The log of a process: a line for each thing that is told, as JSON or for people, with the work that it is about.

All loggers of all libraries write through one handler. What a line is about is bound to the thread or the task that
does the work: job, chunk, stage, request and trace stand in every line of it, whoever writes it.
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
from smalti.telemetry.settings import LogFormat, LogLevel, LogSettings

# What they say of every message and every call at level info is said better by our own.
TALKATIVE = ("celery", "kombu", "amqp", "httpx", "urllib3", "jax", "opentelemetry")


def set_up(service: str, settings: LogSettings | None = None, stream: TextIO | None = None) -> None:
    """Lets everything that is logged from now on be written in one form; replaces what was set up before.

    Args:
        service: stands in every line.
        settings: None reads them from the environment.
        stream: where to; None is the standard error.

    Raises:
        InvalidInputError: a setting cannot be used.
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
    written: list[Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if json:
        written += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    else:
        written += [
            structlog.dev.ConsoleRenderer(
                colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback
            )
        ]
    handler = logging.StreamHandler(stream)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=written))
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    logging.basicConfig(handlers=[handler], level=level, force=True)
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(
            level if settings.level is LogLevel.DEBUG else max(level, logging.WARNING)
        )
    logging.captureWarnings(True)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
    )


def add_trace(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Adds the trace and the span that the line belongs to, where there is one."""
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event.setdefault("trace_id", trace.format_trace_id(context.trace_id))
        event.setdefault("span_id", trace.format_span_id(context.span_id))
    return event


@contextmanager
def about(**what: Any) -> Iterator[None]:
    """Lets every line that this thread or task writes in the block say what it is about; None is left out."""
    with structlog.contextvars.bound_contextvars(
        **{name: value for name, value in what.items() if value is not None}
    ):
        yield
