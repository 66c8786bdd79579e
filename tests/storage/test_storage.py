"""Object stores: the same guarantees for every kind, and the errors."""

import io
import os
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from threading import Barrier

import pytest
from minio import Minio
from pydantic import SecretStr

from harness.objects import put_named, store_settings_for
from harness.servers import HOST, S3Server, free_port
from harness.waiting import WAIT
from smalti.errors import DamagedObjectError, InvalidInputError, MissingObjectError, StoreUnavailableError
from smalti.storage import (
    JobKeys,
    LocalStore,
    MemoryStore,
    ObjectRef,
    ObjectStore,
    StoreSettings,
    digest,
    find,
    open_store,
    sweep,
)
from smalti.storage.s3 import S3Store

KEYS = JobKeys("j1")


def test_object_round_trip(store: ObjectStore) -> None:
    content = os.urandom(100_000)
    ref = store.put(KEYS.encoding, content)
    assert (ref.key, ref.sha256) == (KEYS.encoding, digest(content))
    assert store.get(KEYS.encoding) == content
    assert store.get(KEYS.encoding, sha256=ref.sha256) == content
    info = store.stat(KEYS.encoding)
    assert info is not None
    assert (info.size, info.sha256) == (100_000, ref.sha256)
    assert abs(info.modified - datetime.now(UTC)) < timedelta(minutes=1)
    assert find(store, KEYS.encoding) == (ref,)


def test_object_is_replaced_and_removed(store: ObjectStore) -> None:
    store.put(KEYS.result, b"first")
    store.put(KEYS.result, b"second, and longer")
    store.put(KEYS.candidate(3), b"")
    assert store.get(KEYS.result) == b"second, and longer"
    assert store.get(KEYS.candidate(3)) == b""
    store.delete(KEYS.result, KEYS.candidate(3))
    store.delete(KEYS.result)
    assert store.stat(KEYS.result) is None
    assert find(store, KEYS.result) is None
    with pytest.raises(MissingObjectError, match=KEYS.result):
        store.get(KEYS.result)


def test_the_first_writer_of_a_new_object_wins(store: ObjectStore) -> None:
    key = KEYS.outputs("decode", 0)
    assert store.create(key, b"first", content_type="application/json")
    assert not store.create(key, b"second")
    assert store.get(key) == b"first"
    store.delete(key)
    assert store.create(key, b"third")
    assert store.get(key, sha256=digest(b"third")) == b"third"


def test_of_several_writers_at_once_one_wins(store: ObjectStore) -> None:
    contents = [b"%d" % number * 5_000_000 for number in range(4)]
    together = Barrier(len(contents))

    def create(key: str, content: bytes) -> bool:
        together.wait(WAIT)
        return store.create(key, content)

    with ThreadPoolExecutor(len(contents)) as threads:
        for number in range(3):
            key = KEYS.outputs("decode", number)
            won = list(threads.map(partial(create, key), contents))
            assert won.count(True) == 1
            assert store.get(key) == contents[won.index(True)]


def test_a_key_with_content_belongs_to_one_content(store: ObjectStore) -> None:
    first, second = (put_named(store, KEYS.candidate(3), content) for content in (b"one", b"two"))
    assert first.key == f"jobs/j1/candidates/3-{digest(b'one')[:12]}.png"
    assert first.name == second.name == KEYS.candidate(3)
    assert (store.get(first.key), store.get(second.key)) == (b"one", b"two")
    assert ObjectRef(key=KEYS.candidate(3), sha256=first.sha256).name == KEYS.candidate(3)


def test_content_with_another_checksum_is_refused(store: ObjectStore) -> None:
    store.put(KEYS.encoding, b"of another model")
    with pytest.raises(DamagedObjectError, match="not that which the message refers to"):
        store.get(KEYS.encoding, sha256=digest(b"of this model"))


def test_listing_is_complete_and_sorted(store: ObjectStore) -> None:
    # More than S3 returns per request.
    keys = [KEYS.candidate(index) for index in range(1005)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda key: store.put(key, key.encode()), keys))
    store.put(JobKeys("j10").encoding, b"x")
    assert [info.key for info in store.objects(KEYS.folder)] == sorted(keys)
    assert [info.key for info in store.objects("jobs/j1")] == [*sorted(keys), JobKeys("j10").encoding]
    assert [info.key for info in store.objects("jobs/j1", after=sorted(keys)[1])] == [
        *sorted(keys)[2:],
        JobKeys("j10").encoding,
    ]
    assert list(store.objects("jobs/j2/")) == []
    assert len(list(store.objects(f"{KEYS.folder}candidates/100"))) == 6
    store.delete(*keys)
    assert list(store.objects(KEYS.folder)) == []


def test_sweep_deletes_old_intermediate_objects(store: ObjectStore) -> None:
    intermediate = [KEYS.encoding, KEYS.tokens(0), KEYS.scores(0), KEYS.cancelled]
    kept = [KEYS.candidate(0), KEYS.result]
    for key in (*intermediate, *kept):
        store.put(key, b"x")
    store.put("models/tokens/0", b"x")
    later = datetime.now(UTC) + timedelta(hours=1)
    assert sweep(store, timedelta(hours=2), now=later) == 0
    assert sweep(store, timedelta(minutes=30), now=later) == 4
    assert [info.key for info in store.objects(KEYS.folder)] == sorted(kept)
    assert sweep(store, timedelta(minutes=30), intermediate=False, now=later) == 2
    assert store.stat("models/tokens/0") is not None


@pytest.mark.parametrize(
    "key", ["", "/etc/passwd", "../x", "jobs/../../x", "jobs//x", "jobs/.x", "a\0b", "a b", "a" * 600]
)
def test_invalid_key_is_refused(store: ObjectStore, key: str) -> None:
    for call in (
        lambda: store.put(key, b"x"),
        lambda: store.get(key),
        lambda: store.stat(key),
        lambda: store.delete(key),
        lambda: store.presigned_url(key, seconds=1),
    ):
        with pytest.raises(InvalidInputError) as caught:
            call()
        assert caught.value.field == "key"


def test_keys_of_a_job_are_in_its_folder() -> None:
    assert KEYS.tokens(2) == "jobs/j1/tokens/2.safetensors"
    assert KEYS.check(KEYS.scores(0)) == "jobs/j1/scores/0.json"
    for key in ("jobs/j10/result.json", "jobs/j1", "jobs/j1/../j2/result.json", "result.json"):
        with pytest.raises(InvalidInputError, match="must be in jobs/j1/"):
            KEYS.check(key)
    for job in ("", "..", "a/b", ".a", "a" * 65, "a\n"):
        with pytest.raises(InvalidInputError, match="job"):
            JobKeys(job)
    with pytest.raises(InvalidInputError):
        KEYS.tokens(-1)


def test_damage_on_disk_is_detected(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    ref = store.put(KEYS.tokens(0), b"0123456789")
    path = tmp_path / KEYS.tokens(0)
    for damaged in (b"012345678", b"0123456780", b""):
        path.write_bytes(damaged)
        with pytest.raises(DamagedObjectError, match="do not match its checksum"):
            store.get(KEYS.tokens(0), sha256=ref.sha256)
    (path.parent / f".{path.name}.sha256").unlink()
    with pytest.raises(DamagedObjectError, match="no checksum"):
        store.get(KEYS.tokens(0))
    store.put(KEYS.tokens(0), b"0123456789")
    assert store.get(KEYS.tokens(0)) == b"0123456789"


def test_damage_in_s3_is_detected(s3: S3Server) -> None:
    store = open_store(store_settings_for(s3.url))
    assert isinstance(store, S3Store)
    ref = store.put(KEYS.tokens(0), b"0123456789")
    other = store.put(KEYS.tokens(1), b"other")
    # Objects of another program: one with a wrong checksum, and one without a checksum.
    client = Minio(f"{HOST}:{s3.port}", access_key=s3.access_key, secret_key=s3.secret_key, secure=False)
    client.put_object(
        s3.bucket, ref.key, io.BytesIO(b"9876543210"), 10, metadata={"x-amz-meta-sha256": ref.sha256}
    )
    client.put_object(s3.bucket, other.key, io.BytesIO(b"other"), 5)
    with pytest.raises(DamagedObjectError, match="do not match its checksum"):
        store.get(ref.key)
    with pytest.raises(DamagedObjectError, match="no checksum"):
        store.get(other.key)
    assert find(store, other.key) is None


def test_presigned_url_works_for_anybody_until_it_expires(s3: S3Server) -> None:
    store = open_store(store_settings_for(s3.url))
    store.put(KEYS.candidate(0), b"a picture", content_type="image/png")
    with urllib.request.urlopen(store.presigned_url(KEYS.candidate(0), seconds=60)) as answer:
        assert answer.read() == b"a picture"
        assert answer.headers["Content-Type"] == "image/png"
    public = StoreSettings(url=SecretStr(s3.url), public_url="https://pictures.example")
    assert (
        open_store(public)
        .presigned_url(KEYS.candidate(0), seconds=60)
        .startswith("https://pictures.example/smalti/")
    )


def test_local_url_names_the_file(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put(KEYS.candidate(0), b"a picture")
    with urllib.request.urlopen(store.presigned_url(KEYS.candidate(0), seconds=60)) as answer:
        assert answer.read() == b"a picture"


def test_objects_of_jobs_expire(s3: S3Server) -> None:
    store = open_store(store_settings_for(s3.url))
    assert store.expire_after(7)
    assert store.expire_after(3)
    assert store.expire_after(0)
    assert not MemoryStore().expire_after(7)


def test_missing_bucket_is_created(s3: S3Server) -> None:
    url = s3.url.rpartition("/")[0] + "/another"
    store = open_store(store_settings_for(url))
    with pytest.raises(MissingObjectError):
        store.get(KEYS.result)
    store.put(KEYS.result, b"x")
    assert store.get(KEYS.result) == b"x"


def test_refusal_is_reported_at_once_without_the_secret(s3: S3Server) -> None:
    store = open_store(store_settings_for(s3.url.replace(s3.secret_key, "a-wrong-secret")))
    for call in (lambda: store.put(KEYS.result, b"x"), lambda: store.get(KEYS.result), store.check):
        with pytest.raises(StoreUnavailableError) as caught:
            call()
        assert not caught.value.transient
        assert "a-wrong-secret" not in str(caught.value)


def test_store_that_hangs_times_out(s3: S3Server) -> None:
    store = open_store(store_settings_for(s3.url, timeout=1.0))
    store.put(KEYS.result, b"before")
    s3.pause()
    try:
        began = time.monotonic()
        with pytest.raises(StoreUnavailableError, match="does not answer") as caught:
            store.get(KEYS.result)
    finally:
        s3.resume()
    assert caught.value.transient
    assert time.monotonic() - began < 60  # Three tries of a second each, pauses, and a slow machine.
    assert store.get(KEYS.result) == b"before"
    s3.kill()
    with pytest.raises(StoreUnavailableError, match="does not answer"):
        store.put(KEYS.result, b"meanwhile")
    s3.start()
    assert store.get(KEYS.result) == b"before"


def test_full_disk_is_reported() -> None:
    store = LocalStore(Path("/dev/null/store"))
    with pytest.raises(StoreUnavailableError, match="/dev/null/store"):
        store.put(KEYS.result, b"x")
    with pytest.raises(StoreUnavailableError):
        store.check()


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://localhost/bucket", "must have one of the forms"),
        ("s3+http://key:very-secret@host:1/", "three characters"),
        ("s3+http://key:very-secret@host:1/ab", "three characters"),
        ("s3+http://key:very-secret@host:99999/bucket", "must have one of the forms"),
        ("s3+https://host/bucket", "both keys"),
        (
            "s3+https://key:very-secret@s3.eu-west-1.amazonaws.com/bucket?region=us-east-1",
            "names two regions",
        ),
        ("s3+https://key:very-secret@host/bucket?regoin=us-east-1", r"can have \?region= only"),
        ("file://host/folder", "file:///FOLDER"),
        ("file:///", "file:///FOLDER"),
    ],
)
def test_invalid_url_is_reported_without_the_secret(url: str, problem: str) -> None:
    with pytest.raises(InvalidInputError, match=problem) as caught:
        open_store(StoreSettings(url=SecretStr(url)))
    assert caught.value.field == "SMALTI_STORE_URL"
    assert "very-secret" not in str(caught.value)
    assert "very-secret" not in repr(StoreSettings(url=SecretStr(url)))


def test_keys_may_be_set_separately(s3: S3Server) -> None:
    settings = StoreSettings(
        url=SecretStr(f"s3+http://{HOST}:{s3.port}/{s3.bucket}"),
        access_key=SecretStr(s3.access_key),
        secret_key=SecretStr(s3.secret_key),
    )
    store = open_store(settings)
    store.put(KEYS.result, b"x")
    assert store.get(KEYS.result) == b"x"


def test_wrong_port_is_reported(s3: S3Server) -> None:
    store = open_store(store_settings_for(s3.url.replace(str(s3.port), str(free_port()))))
    with pytest.raises(StoreUnavailableError, match="does not answer"):
        store.check()


@pytest.mark.parametrize(
    ("host", "query", "region"),
    [
        ("s3.eu-west-1.amazonaws.com", "", "eu-west-1"),
        ("s3-us-west-2.amazonaws.com", "", "us-west-2"),
        ("s3.dualstack.ap-southeast-2.amazonaws.com", "?region=ap-southeast-2", "ap-southeast-2"),
        ("s3.cn-north-1.amazonaws.com.cn", "", "cn-north-1"),
        ("s3.us-gov-west-1.amazonaws.com", "", "us-gov-west-1"),
        ("s3.us-west-004.backblazeb2.com", "", "us-west-004"),
        ("s3.fr-par.scw.cloud", "", "fr-par"),
        ("s3.amazonaws.com", "", "us-east-1"),
        ("s3.amazonaws.com", "?region=eu-central-1", "eu-central-1"),
        ("s3.my-company.example", "", "us-east-1"),
        ("127.0.0.1:9000", "?region=home", "home"),
    ],
)
def test_region_of_the_address_is_used(host: str, query: str, region: str) -> None:
    scheme = "s3+http" if host.startswith("127.") else "s3+https"
    store = open_store(StoreSettings(url=SecretStr(f"{scheme}://key:secret@{host}/pictures{query}")))
    signed = store.presigned_url("jobs/8ae186bf-173d-4730-8857-5eb4f8c6ac16/candidates/0.png", seconds=60)
    assert f"%2F{region}%2Fs3%2F" in signed
    if "amazonaws" in host and region != "us-east-1":
        assert region in signed.partition("?")[0]


def test_folder_that_cannot_be_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file/below", Path("/proc/self/store")):
        with pytest.raises(StoreUnavailableError) as caught:
            LocalStore(folder).check()
        assert caught.value.transient is (folder.parts[1] == "proc")  # Not found there: who knows.
