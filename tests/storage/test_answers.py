"""Which answers of an S3 store are waited out, and which are refusals."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from pydantic import SecretStr

from harness.servers import HOST
from smalti.errors import StoreUnavailableError
from smalti.storage import JobKeys, ObjectStore, StoreSettings, open_store

XML = "application/xml"
KEYS = JobKeys("j1")


@contextmanager
def answering(
    status: int,
    code: str = "",
    *,
    kind: str = XML,
    body: bytes | None = None,
    hours: float = 0.0,
    head: int = 200,
) -> Iterator[ObjectStore]:
    """A store that gives one answer, whatever is asked.

    Args:
        status: the status.
        code: the code in the body.
        kind: the content type.
        body: the body instead of the error that S3 makes.
        hours: difference of the store's clock.
        head: the status of its answer to HEAD, which has no body.
    """
    content = (
        f"<Error><Code>{code}</Code><Message>come again</Message></Error>".encode() if body is None else body
    )

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None: ...

        def date_time_string(self, timestamp: float | None = None) -> str:
            return format_datetime(datetime.now(UTC) + timedelta(hours=hours), usegmt=True)

        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            is_head = self.command == "HEAD"
            self.send_response(head if is_head else status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", "0" if is_head else str(len(content)))
            self.end_headers()
            if not is_head:
                self.wfile.write(content)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815

    server = ThreadingHTTPServer((HOST, 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        url = f"s3+http://key:secret@{HOST}:{server.server_port}/smalti"
        yield open_store(StoreSettings(url=SecretStr(url), tries=1, timeout=10.0))
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def problem_of(store: ObjectStore) -> StoreUnavailableError:
    """Returns what is said of a store, which must be the same for each call."""
    calls = (store.check, lambda: store.put(KEYS.result, b"x"), lambda: store.get(KEYS.result))
    found = []
    for call in calls:
        with pytest.raises(StoreUnavailableError) as caught:
            call()
        found.append(caught.value)
    assert len({error.transient for error in found}) == 1
    return found[0]


@pytest.mark.parametrize(
    ("status", "code", "kind", "body"),
    [
        (503, "SlowDownWrite", XML, None),
        (503, "XMinioServerNotInitialized", XML, None),
        (500, "AccessDenied", XML, None),
        (507, "XMinioStorageFull", XML, None),
        (599, "Unheard", XML, None),
        (501, "NotImplemented", XML, None),
        (501, "", "text/html", b"<html>"),
        (502, "", "text/html", b"<html>Bad gateway</html>"),
        (503, "", XML, b"\xff\xfe neither XML nor text"),
        (503, "", XML, b""),
        (429, "TooManyRequests", XML, None),
        (429, "", "application/json", b'{"error": "slow down"}'),
        (408, "", "text/plain", b""),
        (400, "RequestTimeout", XML, None),
        (400, "ThrottlingException", XML, None),
        (403, "QuotaExceeded", XML, None),
        (403, "RequestTimeTooSkewed", XML, None),
    ],
)
def test_answer_that_may_heal_is_waited_out(status: int, code: str, kind: str, body: bytes | None) -> None:
    with answering(status, code, kind=kind, body=body) as store:
        problem = problem_of(store)
        assert problem.transient
        assert code in str(problem)
        assert "\n" not in str(problem)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (403, "AccessDenied", XML),
        (403, "InvalidAccessKeyId", XML),
        (403, "SignatureDoesNotMatch", XML),
        (400, "InvalidBucketName", XML),
        (403, "", "text/html"),
        (404, "", "text/html"),
        (405, "MethodNotAllowed", XML),
        (401, "", "text/plain"),
    ],
)
def test_answer_that_cannot_heal_is_a_refusal(status: int, code: str, kind: str) -> None:
    body = None if kind == XML else b"<html>" + b"a page of a proxy\n" * 1000
    with answering(status, code, kind=kind, body=body) as store:
        problem = problem_of(store)
        assert not problem.transient
        assert (code or str(status)) in str(problem)
        assert len(str(problem)) < 300


@pytest.mark.parametrize("body", [b"<Error/>", b"<html>", b"\xff", b""])
def test_list_that_is_none_is_waited_out(body: bytes) -> None:
    with answering(200, body=body) as store, pytest.raises(StoreUnavailableError) as caught:
        list(store.objects())
    assert caught.value.transient


def test_bucket_that_no_store_can_have_is_a_refusal() -> None:
    store = open_store(StoreSettings(url=SecretStr(f"s3+http://key:secret@{HOST}:9/a_Bucket..x")))
    with pytest.raises(StoreUnavailableError, match="bucket name") as caught:
        store.check()
    assert not caught.value.transient


@pytest.mark.parametrize("hours", [-2, 2])
def test_refusal_over_clocks_that_differ_is_waited_out(hours: int) -> None:
    # An answer to HEAD has no body, and so no code.
    with answering(403, "AccessDenied", head=403, hours=hours) as store:
        problem = problem_of(store)
        assert problem.transient
        side = "ahead of" if hours < 0 else "behind"
        assert f"the clock of this machine is 120 minutes {side} the store's" in str(problem)
        with pytest.raises(StoreUnavailableError, match="the clock of this machine") as caught:
            store.stat(KEYS.result)
        assert caught.value.transient


def test_refusal_of_the_bucket_alone_says_the_reason_of_the_next_call() -> None:
    with answering(403, "RequestTimeTooSkewed", head=403) as store:
        problem = problem_of(store)
        assert problem.transient
        assert "RequestTimeTooSkewed" in str(problem)


def test_store_without_lifecycle_rules_is_no_error() -> None:
    for code in ("NotImplemented", "MethodNotAllowed"):
        with answering(501 if code == "NotImplemented" else 405, code) as store:
            assert not store.expire_after(7)
    with answering(503, "SlowDown") as store, pytest.raises(StoreUnavailableError, match="503: SlowDown"):
        store.expire_after(7)
