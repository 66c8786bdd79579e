"""Messages that tell Celery or kombu what to do are dead letters, before anything is unpacked or obeyed."""

import json
import resource
import zlib
from typing import Any

import pytest

from harness.queue import HARMLESS_WARNINGS, QueueHarness, dead, gather, task
from smalti.queue import Outcome
from smalti.queue.dead.headers import REASON as DEAD_REASON_HEADER

pytestmark = [pytest.mark.filterwarnings(each) for each in HARMLESS_WARNINGS]

QUEUE = "smalti.encode.interactive"
HEADERS = {"task": "smalti.encode", "id": "1", "lang": "py"}
CHAIN = {"task": "smalti.encode", "args": ["{}"], "kwargs": {}, "options": {"queue": QUEUE}}


def body(**embedded: Any) -> bytes:
    return json.dumps([[task().to_json()], {}, embedded]).encode()


def test_instructions_are_dead_letters(queue_harness: QueueHarness) -> None:
    publish = queue_harness.publisher.publish_raw
    headers: dict[str, Any] = {
        "eta": "2099-01-01T00:00:00+00:00",
        "expires": "2001-01-01T00:00:00+00:00",
        "timelimit": [None, 5],
        "chain": [CHAIN],
    }
    for name, value in headers.items():
        publish(QUEUE, body(), "application/json", "utf-8", {**HEADERS, name: value})
    for name in ("chain", "chord", "callbacks", "errbacks"):
        publish(QUEUE, body(**{name: [CHAIN]}), "application/json", "utf-8", HEADERS)
    # A task of Celery's first protocol.
    first = json.dumps({"task": "smalti.encode", "id": "1", "args": [], "eta": headers["eta"]}).encode()
    publish(QUEUE, first, "application/json", "utf-8", {})
    publish(QUEUE, b'"' + b"x" * 2**21 + b'"', "application/json", "utf-8", HEADERS)
    queue_harness.work()
    found = gather(lambda: dead(queue_harness.settings), lambda found: len(found) >= 10)
    reasons = {found[DEAD_REASON_HEADER] for _, found in found}
    assert reasons >= {f"the header {name} is not accepted" for name in headers}
    assert reasons >= {
        f"{name} in the body is not accepted" for name in ("chain", "chord", "callbacks", "errbacks")
    }
    assert "the message is not a Celery task" in reasons
    assert any("a body of 2097154 bytes" in reason for reason in reasons)
    queue_harness.publisher.publish(task("good"))
    queue_harness.wait_for(Outcome.DONE)
    assert queue_harness.begun == ["good"]


def test_compressed_message_is_not_unpacked(queue_harness: QueueHarness) -> None:
    compressor, block = zlib.compressobj(), b"x" * 2**20
    packed = b"".join(compressor.compress(block) for _ in range(600)) + compressor.flush()
    queue_harness.work()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    headers = {**HEADERS, "compression": "application/x-gzip"}
    queue_harness.publisher.publish_raw(QUEUE, packed, "application/json", "utf-8", headers)
    ((_, found),) = gather(lambda: dead(queue_harness.settings), bool)
    assert found[DEAD_REASON_HEADER] == "the header compression is not accepted"
    assert found["compression"] == "application/x-gzip"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024
