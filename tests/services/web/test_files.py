"""Files and uploads, with OpenAI's own client and without."""

import errno
import hashlib
import tempfile
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from starlette import formparsers

from harness.web import WebHarness
from smalti.client import Client
from smalti.settings import Auth
from tests.services.web.conftest import MakeWeb, refusal

LINE = (
    b'{"custom_id": "%d", "method": "POST", "url": "/v1/images/generations", "body": {"prompt": "a cat"}}\n'
)
CONTENT = b"".join(LINE % number for number in range(20_000))
"""More than a message, and than is kept in memory."""


@pytest.fixture
def client(client: openai.OpenAI) -> openai.OpenAI:
    """OpenAI's client, at a service without files."""
    for file in client.files.list():
        client.files.delete(file.id)
    return client


def test_file_goes_and_comes(client: openai.OpenAI) -> None:
    after = {"anchor": "created_at", "seconds": 7200}
    made = client.files.create(file=("requests.jsonl", CONTENT), purpose="batch", expires_after=after)  # type: ignore[arg-type]
    assert (made.filename, made.purpose, made.bytes) == ("requests.jsonl", "batch", len(CONTENT))
    assert (made.object, made.status) == ("file", "processed")
    assert made.expires_at == made.created_at + 7200
    assert client.files.retrieve(made.id) == made
    assert client.files.content(made.id).content == CONTENT
    other = client.files.create(file=("größe.png", b"x"), purpose="vision")
    assert other.expires_at == other.created_at + 30 * 24 * 3600
    assert client.files.delete(made.id).deleted
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        assert refusal(lambda call=call: call(made.id), 404).code == "file_not_found"
    assert [file.id for file in client.files.list()] == [other.id]


def test_list_has_pages(client: openai.OpenAI, web: WebHarness) -> None:
    purposes: Any = ("batch", "vision", "batch", "batch")
    made = [client.files.create(file=("a.txt", b"x"), purpose=each).id for each in purposes]
    hidden = client.uploads.create(bytes=1, filename="hidden", mime_type="text/plain", purpose="batch")
    for call in (client.files.retrieve, client.files.content):
        assert refusal(lambda call=call: call(hidden.id), 404).code == "file_not_found"
    assert [file.id for file in client.files.list(limit=2)] == made[::-1]
    assert [file.id for file in client.files.list(limit=1, order="asc", purpose="batch")] == [
        made[0],
        *made[2:],
    ]
    page = client.files.list(limit=2, after=made[3])
    assert ([file.id for file in page.data], page.has_more) == ([made[2], made[1]], True)
    assert client.files.list(limit=3, after=made[3]).has_more is False
    assert client.files.list(purpose="evals").data == []
    assert refusal(lambda: client.files.list(after="unknown"), 404).code == "file_not_found"
    assert refusal(lambda: client.files.list(limit=0), 400).param == "limit"


@pytest.mark.parametrize(
    ("asked", "status", "part"),
    [
        ("bytes=10-19", 206, slice(10, 20)),
        ("bytes=10-", 206, slice(10, None)),
        ("bytes=-7", 206, slice(-7, None)),
        ("bytes=0-99999999", 206, slice(None)),
        ("bytes=5-3", 416, None),
        ("bytes=99999999-", 416, None),
        ("bytes=1-2,5-6", 200, slice(None)),
        ("bytes=-", 200, slice(None)),
        ("lines=1-2", 200, slice(None)),
    ],
)
def test_ranges(
    client: openai.OpenAI, http: httpx2.Client, asked: str, status: int, part: slice | None
) -> None:
    file = client.files.create(file=("requests.jsonl", CONTENT), purpose="batch")
    answer = http.get(f"/v1/files/{file.id}/content", headers={"range": asked})
    assert answer.status_code == status
    if part is None:
        assert answer.headers["content-range"] == f"bytes */{len(CONTENT)}"
        return
    expected = CONTENT[part]
    assert answer.content == expected
    if status == 206:
        first = CONTENT.index(expected) if len(expected) > 1000 else (part.indices(len(CONTENT))[0])
        assert answer.headers["content-range"] == f"bytes {first}-{first + len(expected) - 1}/{len(CONTENT)}"


def test_unusable_forms(http: httpx2.Client) -> None:
    file = {"file": ("a.txt", b"x")}
    for fields, files, param in (
        ({}, file, "purpose"),
        ({"purpose": "upload"}, file, "purpose"),
        ({"purpose": "batch"}, {"other": ("a.txt", b"x")}, "other"),
        ({"purpose": "batch", "file": "text"}, {"image": ("a.txt", b"x")}, "file"),
        ({"purpose": "batch", "expires_after[seconds]": "1"}, file, "expires_after.anchor"),
        ({"purpose": "batch", "steps": "3"}, file, "steps"),
        ({"purpose": "batch", "expires_after": "1", "expires_after[seconds]": "1"}, file, "expires_after"),
    ):
        answer = http.post("/v1/files", data=fields, files=files)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
    answer = http.post("/v1/files", json={"purpose": "batch"})
    assert answer.json()["error"]["param"] == "body"
    answer = http.post(
        "/v1/files", data={"purpose": "batch"}, headers={"content-type": "multipart/form-data"}
    )
    assert answer.status_code == 400


class FullDisk(tempfile.SpooledTemporaryFile[bytes]):
    """A temporary file that cannot go to the disk."""

    def rollover(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_full_disk_is_told(client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(formparsers, "SpooledTemporaryFile", FullDisk)
        full = refusal(lambda: client.files.create(file=("a.txt", CONTENT), purpose="batch"), 503)
        assert "cannot keep the file while it arrives: No space left on device; try again" in full.message
    client.files.create(file=("a.txt", CONTENT), purpose="batch")


def test_upload_in_parts(client: openai.OpenAI, tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_bytes(CONTENT)
    done = client.uploads.upload_file_chunked(
        file=path,
        mime_type="application/jsonl",
        purpose="batch",
        part_size=1_000_000,
        md5=hashlib.md5(CONTENT, usedforsecurity=False).hexdigest(),
    )
    assert (done.status, done.bytes) == ("completed", len(CONTENT))
    assert done.file is not None
    assert done.file.filename == "requests.jsonl"
    assert client.files.content(done.file.id).content == CONTENT
    assert [file.id for file in client.files.list()] == [done.file.id]
    assert client.uploads.complete(done.id, part_ids=["any"]) == done
    assert refusal(lambda: client.uploads.cancel(done.id), 409).code == "wrong_state"
    assert refusal(lambda: client.uploads.parts.create(done.id, data=b"x"), 409).code == "wrong_state"


def test_upload_goes_on_after_a_part_was_lost(client: openai.OpenAI, web: WebHarness) -> None:
    begun = client.uploads.create(bytes=6, filename="a.txt", mime_type="text/plain", purpose="batch")
    assert (begun.status, begun.expires_at) == ("pending", begun.created_at + 3600)
    parts = [client.uploads.parts.create(begun.id, data=each).id for each in (b"abc", b"lost", b"def")]
    complete = client.uploads.complete
    for ids, problem in (
        (["unknown"], "has no part 'unknown'"),
        ([parts[0], parts[0]], "must name each part once"),
        (parts, "the parts have 10 bytes together, and the upload has 6"),
    ):
        error = refusal(lambda ids=ids: complete(begun.id, part_ids=ids), 400)
        assert error.param == "part_ids"
        assert problem in error.message
    wrong = refusal(lambda: complete(begun.id, part_ids=[parts[0], parts[2]], md5="0" * 32), 400)
    assert wrong.param == "md5"
    done = complete(begun.id, part_ids=[parts[2], parts[0]])
    assert done.file is not None
    assert client.files.content(done.file.id).content == b"defabc"
    for part in parts:
        refusal(lambda part=part: client.files.retrieve(part), 404)


def test_upload_is_completed_again_after_its_answer_was_lost(client: openai.OpenAI, web: WebHarness) -> None:
    begun = client.uploads.create(bytes=6, filename="a.txt", mime_type="text/plain", purpose="batch")
    parts = [client.uploads.parts.create(begun.id, data=each).id for each in (b"abc", b"def")]
    other = client.files.create(file=("b.txt", b"uvwxyz"), purpose="batch")
    with Client(web.address) as gateway:  # As far as a web service came that was killed.
        joined = [gateway.files.compose(parts, name="a.txt") for _ in range(2)]
        assert joined[0] == joined[1]
    refusal(lambda: client.uploads.complete(begun.id, part_ids=[other.id]), 400)
    refusal(lambda: client.uploads.complete(begun.id, part_ids=parts[::-1]), 400)
    assert client.files.content(other.id).content == b"uvwxyz"
    done = client.uploads.complete(begun.id, part_ids=parts)
    assert done.file is not None
    assert done.file.id == joined[0].id
    assert client.files.content(done.file.id).content == b"abcdef"


def test_file_that_calls_itself_an_upload_is_none(client: openai.OpenAI, web: WebHarness) -> None:
    with Client(web.address) as gateway:
        large = gateway.files.upload(b"[" * 2**20, name="a.txt", purpose="upload")
        begun = client.uploads.create(bytes=3, filename="a.txt", mime_type="text/plain", purpose="batch")
        gateway.files.upload(b"[", name=begun.id, purpose="upload.end")
    for upload in (large.id, begun.id):
        refusal(lambda upload=upload: client.uploads.cancel(upload), 404)


def test_upload_is_cancelled(client: openai.OpenAI) -> None:
    begun = client.uploads.create(bytes=3, filename="a.txt", mime_type="text/plain", purpose="batch")
    part = client.uploads.parts.create(begun.id, data=b"abc").id
    assert [client.uploads.cancel(begun.id).status for _ in range(2)] == ["cancelled", "cancelled"]
    assert (
        "is cancelled; begin another one"
        in refusal(lambda: client.uploads.complete(begun.id, part_ids=[part]), 409).message
    )
    refusal(lambda: client.files.retrieve(part), 404)
    file = client.files.create(file=("a.txt", b"x"), purpose="batch")
    assert "there is no upload" in refusal(lambda: client.uploads.cancel(file.id), 404).message


def test_limits(make_web: MakeWeb) -> None:
    web = make_web(gateway={"file_bytes": 50_000, "stored_file_bytes": 2**20}, file_bytes=100_000)
    with openai.OpenAI(base_url=f"{web.url}/v1", api_key="any", max_retries=0) as client:
        large = refusal(lambda: client.files.create(file=("a.txt", bytes(100_000)), purpose="batch"), 413)
        assert large.code == "body_too_large"
        larger = refusal(lambda: client.files.create(file=("a.txt", bytes(50_001)), purpose="batch"), 400)
        assert "must have at most 50000 bytes; divide it into several files" in larger.message
        for _ in range(20):
            client.files.create(file=("a.txt", bytes(50_000)), purpose="batch")
        full = refusal(lambda: client.files.create(file=("a.txt", bytes(50_000)), purpose="batch"), 429)
        assert full.code == "insufficient_quota"
        assert "has 1000000 bytes of files, and may have 1048576; delete some" in full.message


def test_each_tenant_sees_its_own_files(make_web: MakeWeb) -> None:
    web = make_web(auth=[Auth.KEYS])
    from smalti.services.gateway.identity import Role

    keys = [web.gateway.keys.create(name, [Role.DRAW], new_tenant=True)[0] for name in ("one", "two")]
    one, two = (openai.OpenAI(base_url=f"{web.url}/v1", api_key=key, max_retries=0) for key in keys)
    with one, two:
        file = one.files.create(file=("a.txt", b"x"), purpose="batch")
        begun = one.uploads.create(bytes=1, filename="a.txt", mime_type="text/plain", purpose="batch")
        assert [each.id for each in one.files.list()] == [file.id]
        assert two.files.list().data == []
        for call in (
            lambda: two.files.content(file.id),
            lambda: two.files.delete(file.id),
            lambda: two.uploads.parts.create(begun.id, data=b"x"),
            lambda: two.uploads.cancel(begun.id),
        ):
            refusal(call, 404)
