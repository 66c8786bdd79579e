"""The lines of the log."""

import json
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from harness.telemetry import Log, captured_log
from smalti.errors import InvalidInputError
from smalti.settings import read_settings
from smalti.telemetry import LogSettings, audit
from smalti.telemetry.logs import about, set_up
from smalti.telemetry.settings import LogFormat, LogLevel

log = logging.getLogger("smalti.somewhere")


@pytest.fixture
def written() -> Iterator[Log]:
    """The log of this process, as JSON."""
    with captured_log() as log:
        yield log


def test_audit_log_has_a_file_of_its_own_whatever_the_level(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    loud = LogSettings(format=LogFormat.JSON, level=LogLevel.ERROR)
    with captured_log(loud.model_copy(update={"audit": file})) as log, about(request="r1"):
        audit.write("called", who="key 1", key=None)
    (line,) = [json.loads(line) for line in file.read_text().splitlines()]
    assert (line["event"], line["who"], line["request"]) == ("called", "key 1", "r1")
    assert "key" not in line
    assert "timestamp" in line
    assert log.getvalue() == ""
    with captured_log(loud) as log:
        audit.write("called", who="key 1")
    assert log.find("called")["who"] == "key 1"
    assert len(file.read_text().splitlines()) == 1


def test_audit_file_that_cannot_be_written_ends_the_start(tmp_path: Path) -> None:
    with captured_log(), pytest.raises(InvalidInputError, match=r"^SMALTI_LOG_AUDIT: .* cannot be written"):
        set_up("encoder", LogSettings(audit=tmp_path / "none" / "audit.jsonl"))


def test_line_has_time_level_logger_service_and_event(written: Log) -> None:
    log.info("%d pictures", 9, extra={"job": "j1"})
    structlog.get_logger("smalti.else").warning("hm", reason="none")
    log.debug("too much")
    line = written.find("9 pictures")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line.pop("timestamp"))
    assert line == {
        "event": "9 pictures",
        "job": "j1",
        "level": "info",
        "logger": "smalti.somewhere",
        "service": "encoder",
    }
    assert (
        written.find("hm").items() >= {"level": "warning", "logger": "smalti.else", "reason": "none"}.items()
    )
    assert len(written.lines) == 2


def test_exception_is_part_of_its_line(written: Log) -> None:
    try:
        raise ValueError("of two\nlines")
    except ValueError:
        log.exception("it failed")
    line = written.find("it failed")
    assert line["level"] == "error"
    assert line["exception"].startswith("Traceback (most recent call last):\n")
    assert line["exception"].endswith("ValueError: of two\nlines")


def test_libraries_share_the_handler_and_are_quiet(written: Log) -> None:
    logging.getLogger("celery.worker.strategy").info("Task received")
    logging.getLogger("urllib3.connectionpool").warning("Retrying")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", UserWarning, stacklevel=1)
    assert [line["logger"] for line in written.lines] == ["urllib3.connectionpool", "py.warnings"]
    set_up("encoder", LogSettings(format=LogFormat.JSON, level=LogLevel.DEBUG), written)
    logging.getLogger("celery.worker.strategy").info("Task received")
    assert written.find("Task received")["service"] == "encoder"


@pytest.mark.parametrize(
    ("settings", "is_json"), [(LogSettings(format=LogFormat.CONSOLE), False), (LogSettings(), True)]
)
def test_format_follows_the_setting_and_is_json_without_a_terminal(
    settings: LogSettings, is_json: bool
) -> None:
    with captured_log(settings) as written:
        log.error("a line", extra={"job": "j1"})
    assert written.getvalue().startswith("{") is is_json
    assert "a line" in written.getvalue()
    assert "j1" in written.getvalue()


def test_nested_blocks_add_their_fields(written: Log) -> None:
    with about(job="j1", chunk=None), about(chunk=3):
        log.info("inside")
    log.info("outside")
    assert (written.find("inside")["job"], written.find("inside")["chunk"]) == ("j1", 3)
    assert not {"job", "chunk"} & set(written.find("outside"))


def test_invalid_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALTI_LOG_LEVEL", "loud")
    with pytest.raises(
        InvalidInputError, match=r"^SMALTI_LOG_LEVEL: .*'debug', 'info', 'warning' or 'error'"
    ):
        read_settings(LogSettings)
