"""Lifecycle rules of a bucket: ours is set, those of others are left alone."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from minio.commonconfig import ENABLED, Filter
from minio.lifecycleconfig import Expiration, LifecycleConfig, Rule
from pydantic import SecretStr

from harness.servers import S3Server
from smalti.storage import StoreSettings, open_store
from smalti.storage.s3 import S3Address, S3Store

PREFIX_RULE = (
    "<Rule><ID>backups</ID><Filter><Prefix>backup/</Prefix></Filter><Status>Enabled</Status>"
    "<Expiration><Days>1</Days></Expiration></Rule>"
)
SIZE_RULE = (
    "<Rule><ID>large</ID><Filter><ObjectSizeGreaterThan>1000000000</ObjectSizeGreaterThan></Filter>"
    "<Status>Enabled</Status><Expiration><Days>1</Days></Expiration></Rule>"
)
OUR_RULE = (
    "<Rule><ID>smalti-jobs</ID><Filter><Prefix>jobs/</Prefix></Filter><Status>Enabled</Status>"
    "<Expiration><Days>7</Days></Expiration></Rule>"
)


@contextmanager
def bucket_with_rules(*rules: str) -> Iterator[tuple[S3Store, list[str]]]:
    """Yields a store whose bucket has lifecycle rules, answered as AWS does, and the requests that change it."""
    body = f"<LifecycleConfiguration>{''.join(rules)}</LifecycleConfiguration>"
    status = 200
    if not rules:
        body, status = "<Error><Code>NoSuchLifecycleConfiguration</Code></Error>", 404
    changes: list[str] = []

    class Answers(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None: ...

        def answer(self, content: str = "", status: int = 200) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(status)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content.encode())

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer(body, status)

        def do_PUT(self) -> None:
            changes.append(f"{self.command} {self.path}")
            self.answer()

        do_DELETE = do_PUT  # noqa: N815 - the name that the server calls

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield (
                S3Store(S3Address(f"http://127.0.0.1:{server.server_port}", "shared", "key", "secret")),
                changes,
            )
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("rules", "days", "supported", "changed"),
    [
        ([], 7, True, True),
        ([OUR_RULE], 7, True, False),
        ([OUR_RULE], 3, True, True),
        ([OUR_RULE], 0, True, True),
        ([PREFIX_RULE], 7, False, False),
        ([PREFIX_RULE, OUR_RULE], 7, True, False),
        ([PREFIX_RULE, OUR_RULE], 3, False, False),
        ([PREFIX_RULE, OUR_RULE], 0, False, False),
        ([SIZE_RULE, OUR_RULE], 7, False, False),
    ],
)
def test_lifecycle_rules_of_others_are_never_touched(
    rules: list[str], days: int, supported: bool, changed: bool
) -> None:
    with bucket_with_rules(*rules) as (store, changes):
        assert store.expire_after(days) is supported
        assert bool(changes) is changed


def test_bucket_with_rules_of_others_keeps_them(s3: S3Server) -> None:
    store = open_store(StoreSettings(url=SecretStr(s3.url.rpartition("/")[0] + "/rules")))
    assert isinstance(store, S3Store)
    store.check()
    theirs = Rule(
        ENABLED, rule_filter=Filter(prefix="backup/"), rule_id="backups", expiration=Expiration(days=30)
    )
    store._client.set_bucket_lifecycle("rules", LifecycleConfig([theirs]))
    assert not store.expire_after(7)
    present = store._client.get_bucket_lifecycle("rules")
    assert present is not None
    assert [rule.rule_id for rule in present.rules] == ["backups"]
