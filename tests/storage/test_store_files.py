"""Objects that are too large for memory: written from files, read into files and in parts, uploaded by others."""

import io
import os
import urllib.request
from pathlib import Path

import pytest

from harness.objects import store_settings_for
from harness.proxy import NetworkFault, Proxy
from harness.servers import S3Server
from smalti.errors import DamagedObjectError, InvalidInputError, MissingObjectError, StoreUnavailableError
from smalti.storage import BreakerStore, ObjectStore, digest, open_store
from smalti.storage.s3_client import PART_BYTES
from smalti.storage.timed import TimedStore
from smalti.telemetry import Metrics

KEY = "batches/b1/output/00000.tar"
LARGE = os.urandom(2**20) * (PART_BYTES // 2**20) + b"the last part"


def file_with(folder: Path, content: bytes, name: str = "file") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("content", [b"", b"small", LARGE], ids=["empty", "small", "in parts"])
def test_file_round_trip(store: ObjectStore, tmp_path: Path, content: bytes) -> None:
    ref = store.put_file(KEY, file_with(tmp_path, content), content_type="application/x-tar")
    assert (ref.key, ref.sha256) == (KEY, digest(content))
    info = store.stat(KEY)
    assert info is not None
    assert (info.size, info.sha256) == (len(content), ref.sha256)
    assert store.get(KEY, sha256=ref.sha256) == content
    for sha256 in (None, ref.sha256):
        store.get_file(KEY, tmp_path / "copy", sha256=sha256)
        assert (tmp_path / "copy").read_bytes() == content
    store.put_file(KEY, file_with(tmp_path, b"another"))
    assert store.get(KEY) == b"another"


def test_file_that_is_not_as_wanted_leaves_no_copy(store: ObjectStore, tmp_path: Path) -> None:
    store.put(KEY, b"of another model")
    with pytest.raises(DamagedObjectError, match="not that which the message refers to"):
        store.get_file(KEY, tmp_path / "copy", sha256=digest(b"of this model"))
    with pytest.raises(MissingObjectError, match="none"):
        store.get_file("batches/none", tmp_path / "copy")
    assert list(tmp_path.glob("*copy*")) == []


def test_object_is_copied(store: ObjectStore, tmp_path: Path) -> None:
    for content in (b"", LARGE):
        source = store.put_file("jobs/b1-00000/shard/output.tar", file_with(tmp_path, content))
        ref = store.copy(source, KEY)
        assert (ref.key, ref.sha256) == (KEY, source.sha256)
        store.put(source.key, b"replaced")
        assert store.get(KEY, sha256=ref.sha256) == content
        store.delete(source.key)
        assert store.get(KEY, sha256=ref.sha256) == content
    with pytest.raises(MissingObjectError, match=source.key):
        store.copy(source, KEY)
    assert store.get(KEY) == LARGE


def test_object_is_read_in_parts(store: ObjectStore) -> None:
    content = os.urandom(3 * 2**20 + 17)
    store.put(KEY, content)
    assert store.read(KEY, 5, 10) == content[5:15]
    assert store.read(KEY, len(content) - 3, 10) == content[-3:]
    assert store.read(KEY, len(content), 10) == b""
    with store.open_object(KEY) as file:
        assert file.seekable()
        assert file.read(7) == content[:7]
        assert file.seek(-9, io.SEEK_END) == len(content) - 9
        assert file.read() == content[-9:]
        assert file.read(1) == b""
        file.seek(2**20 - 3)
        assert file.read(2**21) == content[2**20 - 3 : 2**20 - 3 + 2**21]
        file.seek(0)
        assert b"".join(iter(lambda: file.read(700_001), b"")) == content
        store.delete(KEY)
        file.seek(2**21)
        with pytest.raises(MissingObjectError):
            file.read()
    for call in (lambda: store.read(KEY, 0, 1), lambda: store.open_object(KEY)):
        with pytest.raises(MissingObjectError, match=KEY):
            call()


def test_empty_object_can_be_opened(store: ObjectStore) -> None:
    store.put(KEY, b"")
    with store.open_object(KEY) as file:
        assert file.read() == b""


def test_what_others_upload_is_read_with_its_digest_from_elsewhere(s3: S3Server, tmp_path: Path) -> None:
    store = open_store(store_settings_for(s3.url))
    url = store.presigned_upload("inputs/i1.jsonl", seconds=60)
    with urllib.request.urlopen(urllib.request.Request(url, data=b"a cat\n", method="PUT")) as answer:
        assert answer.status == 200
    with store.open_object("inputs/i1.jsonl") as file:
        assert file.read() == b"a cat\n"
    store.get_file("inputs/i1.jsonl", tmp_path / "copy", sha256=digest(b"a cat\n"))
    assert (tmp_path / "copy").read_bytes() == b"a cat\n"
    with pytest.raises(DamagedObjectError, match="no checksum"):
        store.get_file("inputs/i1.jsonl", tmp_path / "copy")
    with pytest.raises(DamagedObjectError, match="not that"):
        store.get_file("inputs/i1.jsonl", tmp_path / "copy", sha256=digest(b"a dog\n"))


@pytest.mark.parametrize("store", ["memory", "local"], indirect=True)
def test_store_without_urls_takes_no_uploads(store: ObjectStore) -> None:
    assert store.presigned_upload("inputs/i1.jsonl", seconds=60) == ""


def test_invalid_key_is_refused(store: ObjectStore, tmp_path: Path) -> None:
    path = file_with(tmp_path, b"x")
    for call in (
        lambda: store.put_file("../x", path),
        lambda: store.get_file("../x", path),
        lambda: store.read("../x", 0, 1),
        lambda: store.open_object("../x"),
        lambda: store.presigned_upload("../x", seconds=1),
    ):
        with pytest.raises(InvalidInputError, match="key"):
            call()
    assert path.read_bytes() == b"x"


def test_file_that_cannot_be_used_is_named(store: ObjectStore, tmp_path: Path) -> None:
    store.put(KEY, b"x")
    missing = tmp_path / "missing" / "file"
    for call in (
        lambda: store.put_file(KEY, missing),
        lambda: store.get_file(KEY, missing),
    ):
        with pytest.raises(StoreUnavailableError, match="missing/file: No such file"):
            call()
    assert store.get(KEY) == b"x"


def test_connection_that_breaks_in_the_middle(s3: S3Server, tmp_path: Path) -> None:
    with Proxy(s3.port) as proxy:
        store = open_store(store_settings_for(s3.url.replace(str(s3.port), str(proxy.port)), timeout=2.0))
        ref = store.put_file(KEY, file_with(tmp_path, LARGE))
        with proxy.faulty(NetworkFault(max_bytes=2**22)):
            with pytest.raises(StoreUnavailableError) as caught:
                store.get_file(KEY, tmp_path / "copy", sha256=ref.sha256)
            assert caught.value.transient
            assert list(tmp_path.glob("*copy*")) == []
            # Several connections break on the way; each part is asked for again.
            with store.open_object(KEY) as file:
                assert file.read() == LARGE
        with proxy.faulty(NetworkFault(lose_responses=True)), pytest.raises(StoreUnavailableError):
            store.put_file("batches/b1/output/00001.tar", file_with(tmp_path, LARGE))
        store.get_file(KEY, tmp_path / "copy", sha256=ref.sha256)
        assert (tmp_path / "copy").read_bytes() == LARGE


def test_wrapped_stores_pass_files_on(tmp_path: Path) -> None:
    store = BreakerStore(TimedStore(open_store(store_settings_for("memory:")), Metrics("ranker")))
    path = file_with(tmp_path, b"0123456789")
    ref = store.put_file(KEY, path)
    assert store.get(store.copy(ref, "batches/b1/copy").key) == b"0123456789"
    store.get_file(KEY, tmp_path / "copy", sha256=ref.sha256)
    assert (tmp_path / "copy").read_bytes() == b"0123456789"
    assert store.read(KEY, 2, 3) == b"234"
    with store.open_object(KEY) as file:
        assert file.read() == b"0123456789"
    assert store.presigned_upload(KEY, seconds=1) == ""
