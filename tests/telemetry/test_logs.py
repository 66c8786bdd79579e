"""The log of a process: what stands in a line, and what must not."""

import asyncio
import io
import json
import logging
import re
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import structlog

from harness.collector import Collector
from harness.grpc_server import asynchronous, served
from harness.queue import HARMLESS_WARNINGS, clear, events, gather, settings_for, task
from harness.servers import ValkeyServer
from smalti.errors import InvalidInputError, UnavailableError
from smalti.messages import Message, Stage
from smalti.queue import BrokerPublisher, Delivery, consume
from smalti.rpc.channel import channel
from smalti.rpc.settings import RpcSettings
from smalti.settings import read_settings
from smalti.telemetry import LogSettings, Metrics, Telemetry, tracing
from smalti.telemetry.logs import about, set_up
from smalti.telemetry.settings import LogFormat, LogLevel
from smalti.v1.encoder_pb2 import EncodeRequest
from smalti.v1.encoder_pb2_grpc import EncoderServiceStub

pytestmark = [pytest.mark.filterwarnings(each) for each in HARMLESS_WARNINGS]

JSON = LogSettings(format=LogFormat.JSON)
log = logging.getLogger("smalti.somewhere")


class Log(io.StringIO):
    """What was written."""

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.getvalue().splitlines()]

    def of(self, event: str) -> dict[str, Any]:
        found = [line for line in self.lines if line["event"] == event]
        assert len(found) == 1
        return found[0]


@pytest.fixture
def written() -> Iterator[Log]:
    """The log of this process, as JSON; what pytest catches is as before afterwards."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    levels = {
        name: logger.level
        for name, logger in root.manager.loggerDict.items()
        if isinstance(logger, logging.Logger)
    }
    root.handlers = []
    log = Log()
    set_up("encoder", JSON, log)
    yield log
    logging.captureWarnings(False)
    structlog.reset_defaults()
    root.handlers = handlers
    root.setLevel(level)
    for name in root.manager.loggerDict:
        logging.getLogger(name).setLevel(levels.get(name, logging.NOTSET))


def test_line_says_who_when_how_bad_and_what(written: Log) -> None:
    log.info("%d pictures", 9, extra={"job": "j1"})
    structlog.get_logger("smalti.else").warning("hm", reason="none")
    log.debug("too much")
    line = written.of("9 pictures")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line.pop("timestamp"))
    assert line == {
        "event": "9 pictures",
        "job": "j1",
        "level": "info",
        "logger": "smalti.somewhere",
        "service": "encoder",
    }
    assert written.of("hm").items() >= {"level": "warning", "logger": "smalti.else", "reason": "none"}.items()
    assert len(written.lines) == 2


def test_exception_is_part_of_its_line(written: Log) -> None:
    try:
        raise ValueError("of two\nlines")
    except ValueError:
        log.exception("it failed")
    line = written.of("it failed")
    assert line["level"] == "error"
    assert line["exception"].startswith("Traceback (most recent call last):\n")
    assert line["exception"].endswith("ValueError: of two\nlines")


def test_libraries_write_through_the_same_handler_and_not_much(written: Log) -> None:
    logging.getLogger("celery.worker.strategy").info("Task received")
    logging.getLogger("urllib3.connectionpool").warning("Retrying")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", UserWarning, stacklevel=1)
    assert [line["logger"] for line in written.lines] == ["urllib3.connectionpool", "py.warnings"]
    set_up("encoder", LogSettings(format=LogFormat.JSON, level=LogLevel.DEBUG), written)
    logging.getLogger("celery.worker.strategy").info("Task received")
    assert written.of("Task received")["service"] == "encoder"


def test_for_people_it_is_no_json() -> None:
    for settings, is_json in ((LogSettings(format=LogFormat.CONSOLE), False), (LogSettings(), True)):
        out = Log()
        root = logging.getLogger()
        handlers = list(root.handlers)
        root.handlers = []
        set_up("encoder", settings, out)
        log.error("a line", extra={"job": "j1"})
        root.handlers = handlers
        structlog.reset_defaults()
        logging.captureWarnings(False)
        assert out.getvalue().startswith("{") is is_json
        assert "a line" in out.getvalue()
        assert "j1" in out.getvalue()


def test_what_is_said_in_a_handlers_thread_names_the_work_and_never_the_prompt(
    valkey: ValkeyServer, written: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(valkey, attempts=2)
    clear(settings)

    def handle(delivery: Delivery) -> Iterable[Message]:
        message = delivery.message
        logging.getLogger("library").warning("in %s", message.job)
        structlog.get_logger().info("also in it", of=message.job)
        if message.job == "fails":
            raise RuntimeError("it is broken")
        if message.job == "waits":
            raise UnavailableError("it is away")
        return [message.done()]  # type: ignore[union-attr]

    publisher = BrokerPublisher(settings)
    with Collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
        traced = tracing.start("encoder")
        assert traced is not None
        with consume(Stage.ENCODE, handle, concurrency=4, publisher=publisher, settings=settings):
            for job in ("works", "fails", "waits", "late"):
                publisher.publish(task(job, prompt="a secret cat", expires=1.0 if job == "late" else 4e9))
            publisher.publish_text(Stage.ENCODE, "encode.batch", task("x", "a secret cat").to_json()[:-1])
            gather(lambda: events(settings), lambda found: len(found) == 4)
        traced.close()
        spans = {
            span.attributes["smalti.job"]: span for span in collector.named("process encode.interactive")
        }
    publisher.close()
    lines = written.lines
    for line in lines:
        if line["event"].startswith("in "):
            assert (line["job"], line["stage"]) == (line["event"][3:], "encode")
        if line["event"] == "also in it":
            assert line["job"] == line["of"]
    assert written.of("in works")["trace_id"] == spans["works"].trace
    assert {line["attempt"] for line in lines if line["event"] == "in fails"} == {1, 2}
    assert [
        line["job"]
        for line in lines
        if line["event"] == "the handler of encode failed at ('fails', 'encode', '0')"
    ] == [
        "fails",
        "fails",
    ]
    dead = [line for line in lines if "dead-letter queue" in line["event"]]
    assert {line.get("job") for line in dead} == {"fails", "waits", None}
    assert "job" not in structlog.contextvars.get_contextvars()
    assert "secret" not in written.getvalue()


@asynchronous
async def test_what_is_said_in_a_call_names_it_and_not_another(monkeypatch: pytest.MonkeyPatch) -> None:
    telemetry = Telemetry(Metrics("generator"), None, None)
    async with (
        served(interceptors=telemetry.interceptors) as (server, servicer),
        channel(server.address, RpcSettings(attempts=1)) as to_server,
    ):
        seen: dict[str, set[str]] = {}
        wait = servicer._wait

        async def note(waits: bool) -> None:
            bound = structlog.contextvars.get_contextvars()
            seen.setdefault(bound["request"], set()).add(bound["request"])
            await wait(waits)
            seen[bound["request"]].add(structlog.contextvars.get_contextvars()["request"])

        monkeypatch.setattr(servicer, "_wait", note)
        stub = EncoderServiceStub(to_server)
        calls = [
            stub.Encode(EncodeRequest(prompt="wait"), metadata=(("x-request-id", name),))
            for name in ("one", "two", "not one")
        ]
        while servicer.calls < 3:
            await asyncio.sleep(0.01)
        servicer.go_on.set()
        await asyncio.gather(*calls)
    made = next(name for name in seen if name not in ("one", "two"))
    assert re.fullmatch(r"[0-9a-f]{32}", made)
    assert seen == {name: {name} for name in ("one", "two", made)}
    telemetry.close()


def test_work_within_work_is_named_by_both(written: Log) -> None:
    with about(job="j1", chunk=None), about(chunk=3):
        log.info("inside")
    log.info("outside")
    assert (written.of("inside")["job"], written.of("inside")["chunk"]) == ("j1", 3)
    assert not {"job", "chunk"} & set(written.of("outside"))


def test_setting_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALTI_LOG_LEVEL", "loud")
    with pytest.raises(
        InvalidInputError, match=r"^SMALTI_LOG_LEVEL: .*'debug', 'info', 'warning' or 'error'"
    ):
        read_settings(LogSettings)
