"""Files: uploads and downloads, what tenants see, limits, and deletion."""

import hashlib
from typing import Any

import grpc
import pytest

from harness.file_calls import (
    CONTENT,
    compose,
    delete,
    download,
    files,
    get,
    listed,
    nothing_left,
    objects_of,
    problem,
    upload,
)
from harness.gateway import FaultyStore, GatewayHarness, MakeGateway
from harness.gateway_calls import served
from harness.grpc_server import asynchronous
from harness.service import answer
from smalti.errors import (
    InvalidInputError,
    QuotaExceededError,
    StoredFileNotFoundError,
    StoreUnavailableError,
)
from smalti.services.gateway.files import NewFile, contents, register_file
from smalti.services.gateway.identity import Role
from smalti.settings import Auth
from smalti.v1 import file_pb2
from smalti.v1.file_pb2_grpc import FileServiceStub

HOUR, DAY = 3600.0, 24 * 3600.0
UPLOADING, READY = file_pb2.FILE_STATE_UPLOADING, file_pb2.FILE_STATE_READY


@asynchronous
async def test_upload_and_download(gateway: GatewayHarness) -> None:
    async with files(gateway) as stub:
        made = await upload(stub, name="größe.txt")
        assert (made.name, made.purpose, made.state) == ("größe.txt", "batch", READY)
        assert (made.size_bytes, made.sha256) == (len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
        assert made.delete_time.seconds - made.create_time.seconds == 30 * DAY
        assert await get(stub, made.id) == made
        assert await download(stub, made.id) == CONTENT
        assert await download(stub, made.id, len(CONTENT) - 3) == CONTENT[-3:]
        assert await download(stub, made.id, len(CONTENT)) == b""
        for offset in (-1, len(CONTENT) + 1):
            assert "offset: must be between" in str(await problem(download(stub, made.id, offset)))
        empty = await upload(stub, b"")
        assert (empty.state, empty.size_bytes) == (READY, 0)
        assert await download(stub, empty.id) == b""


@asynchronous
async def test_files_are_joined(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(file_bytes=2**20 + 3000)
    async with files(gateway) as stub:
        parts = [await upload(stub, each * 1000) for each in (b"a", b"b", b"c")]
        ids = [part.id for part in parts]
        for wrong in ([], [ids[0], ids[0]], ["x"] * 1001):
            with pytest.raises(InvalidInputError, match=r"^file_ids: must have 1 to 1000 ids, each once"):
                await compose(stub, wrong)
        with pytest.raises(StoredFileNotFoundError):
            await compose(stub, [ids[0], "unknown"])
        whole = await compose(stub, [ids[2], ids[0], ids[1]])
        assert await download(stub, whole.id) == b"c" * 1000 + b"a" * 1000 + b"b" * 1000
        assert await listed(stub) == [whole]
        with pytest.raises(StoredFileNotFoundError):
            await compose(stub, ids)
        large = await upload(stub, bytes(2**20 + 1))
        with pytest.raises(InvalidInputError, match=r"^file_ids: must have at most 1051576 bytes together"):
            await compose(stub, [whole.id, large.id])
        gateway.gateway.remove_files()
    assert len(objects_of(gateway)) == 2


@asynchronous
async def test_files_are_joined_once_however_often_it_is_asked(gateway: GatewayHarness) -> None:
    async with files(gateway) as stub:
        ids = [(await upload(stub, each)).id for each in (b"abc", b"def")]
        key = next(key for key in objects_of(gateway) if ids[1] in key)
        content, info = gateway.store.entries.pop(key)  # type: ignore[attr-defined]
        with pytest.raises(StoredFileNotFoundError):
            await compose(stub, ids)
        gateway.store.entries[key] = (content, info)  # type: ignore[attr-defined]
        whole = await compose(stub, ids)  # An earlier try that has failed is not in the way.
        assert await download(stub, whole.id) == b"abcdef"
        others = [(await upload(stub, each)).id for each in (b"abc", b"def")]
        other = await compose(stub, others)
        assert await compose(stub, others) == other
        assert other.id != whole.id


@asynchronous
async def test_damaged_content_is_told(gateway: GatewayHarness) -> None:
    async with files(gateway) as stub:
        made, other = await upload(stub), await upload(stub, b"other")
        key = next(key for key in objects_of(gateway) if made.id in key)
        _, info = gateway.store.entries[key]  # type: ignore[attr-defined]
        gateway.store.entries[key] = (CONTENT[:-1] + b"!", info)  # type: ignore[attr-defined]
        with pytest.raises(StoredFileNotFoundError, match="is damaged"):
            await download(stub, made.id)
        with pytest.raises(StoredFileNotFoundError, match="is damaged"):
            await compose(stub, [other.id, made.id])
        assert await download(stub, other.id) == b"other"
        gateway.store.delete(key)
        with pytest.raises(StoredFileNotFoundError, match=f"there is no file {made.id}"):
            await download(stub, made.id)


@asynchronous
async def test_list(gateway: GatewayHarness) -> None:
    async with files(gateway) as stub:
        made = []
        for number in range(5):
            gateway.clock.advance(1)
            made.append(await upload(stub, b"x", name=f"{number % 2}.txt", purpose=str(number // 3)))
        assert await listed(stub) == made[::-1]
        assert await listed(stub, oldest_first=True) == made
        assert await listed(stub, purpose="1") == [made[4], made[3]]
        assert await listed(stub, name="0.txt", oldest_first=True) == [made[0], made[2], made[4]]
        for backwards, expected in ((False, made[::-1]), (True, made)):
            request = file_pb2.ListFilesRequest(page_size=2, oldest_first=backwards)
            found: list[Any] = []
            while True:
                page = await answer(stub.ListFiles(request))
                assert len(page.files) <= 2
                found += page.files
                request.page_token = page.next_page_token
                if not request.page_token:
                    break
            assert found == expected
        assert await listed(stub, after_file_id=made[2].id) == [made[1], made[0]]
        assert await listed(stub, after_file_id=made[2].id, oldest_first=True) == [made[3], made[4]]
        with pytest.raises(StoredFileNotFoundError):
            await listed(stub, after_file_id="unknown")
        page = await answer(stub.ListFiles(file_pb2.ListFilesRequest(page_size=2)))
        with pytest.raises(InvalidInputError, match=r"^page_token"):
            await listed(stub, page_token=page.next_page_token, purpose="1")
        with pytest.raises(InvalidInputError, match=r"^after_file_id"):
            await listed(stub, page_token=page.next_page_token, after_file_id=made[0].id)


@asynchronous
async def test_deleted_and_expired_files_are_gone_with_their_objects(gateway: GatewayHarness) -> None:
    async with files(gateway) as stub:
        short, other, kept = [await upload(stub, seconds=seconds) for seconds in (3600, 7200, 7200)]
        await delete(stub, other.id)
        with pytest.raises(StoredFileNotFoundError):
            await delete(stub, other.id)
        gateway.clock.advance(3601)
        gateway.gateway.remove_files()
        assert [each.id for each in await listed(stub)] == [kept.id]
        for file_id in (short.id, other.id, "unknown", "x" * 100, "a\0b"):
            with pytest.raises(StoredFileNotFoundError):
                await get(stub, file_id)
        with pytest.raises(InvalidInputError, match=r"^file_id: must be set"):
            await get(stub, "")
    assert [key.split("/")[1] for key in objects_of(gateway)] == [kept.id]


@asynchronous
async def test_objects_are_deleted_once_the_store_is_back(make_gateway: MakeGateway) -> None:
    store = FaultyStore()
    gateway = make_gateway(store=store)
    async with files(gateway) as stub:
        made = await upload(stub)
        await delete(stub, made.id)

        def refuse(*keys: str) -> None:
            raise StoreUnavailableError("the store is unavailable")

        store.delete = refuse  # type: ignore[method-assign]
        with pytest.raises(StoreUnavailableError):
            gateway.gateway.remove_files()
        del store.delete
        assert await listed(stub) == []
    assert await nothing_left(gateway)


@asynchronous
async def test_tenants_see_their_own(gateway: GatewayHarness) -> None:
    keys = {
        name: gateway.keys.create(name, [Role.ADMIN if name == "admin" else Role.BATCH], new_tenant=True)[0]
        for name in ("one", "two", "admin")
    }
    gatekeeper = gateway.gatekeeper(Auth.KEYS)

    def stub_of(channel: grpc.aio.Channel) -> dict[str, Any]:
        stub: Any = FileServiceStub(channel)
        return {name: _WithKey(stub, key) for name, key in keys.items()}

    async with served(gateway, stub=stub_of, authenticate=gatekeeper) as stubs:
        made = await upload(stubs["one"])
        assert await listed(stubs["one"]) == await listed(stubs["admin"]) == [made]
        assert await listed(stubs["two"]) == []
        two = stubs["two"]
        for call in (
            get(two, made.id),
            download(two, made.id),
            delete(two, made.id),
            compose(two, [made.id]),
            listed(two, after_file_id=made.id),
            answer(two.FinishFile(file_pb2.FinishFileRequest(file_id=made.id))),
        ):
            assert isinstance(await problem(call), StoredFileNotFoundError)
        assert await download(stubs["admin"], made.id) == CONTENT
        await delete(stubs["admin"], made.id)


class _WithKey:
    def __init__(self, stub: Any, key: str) -> None:
        self._stub, self._metadata = stub, (("authorization", f"Bearer {key}"),)

    def __getattr__(self, name: str) -> Any:
        return lambda request: getattr(self._stub, name)(request, metadata=self._metadata)


@asynchronous
async def test_limits_of_a_tenant(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(stored_file_bytes=2**20, stored_files=3)
    async with files(gateway) as stub:
        first = await upload(stub, bytes(2**20 - 10))
        error = await problem(upload(stub, bytes(11)))
        assert isinstance(error, QuotaExceededError)
        assert (error.quota, error.limit, error.left) == ("stored_file_bytes", 2**20, 10)
        assert "has 1048566 bytes of files, and may have 1048576; delete some" in str(error)
        second = await upload(stub, bytes(10))
        # What replaces its parts needs no room beside them.
        whole = await compose(stub, [first.id, second.id])
        with pytest.raises(QuotaExceededError):
            await upload(stub, b"x")
        await delete(stub, whole.id)
        for _ in range(3):
            await upload(stub, b"x")
        error = await problem(upload(stub, b"x"))
        assert isinstance(error, QuotaExceededError)
        assert (error.quota, error.limit) == ("stored_files", 3)


def test_files_of_the_gateway_itself(make_gateway: MakeGateway, tmp_path: Any) -> None:
    gateway = make_gateway(stored_files=1)
    (tmp_path / "answers.jsonl").write_bytes(CONTENT)
    new = NewFile(
        tenant="default", name="answers.jsonl", purpose="batch_output", retention=DAY, id="b1-output"
    )
    for _ in range(2):
        assert register_file(gateway.gateway.context, new, tmp_path / "answers.jsonl") == "b1-output"
    row = gateway.gateway.files.get_ready("b1-output", tenant="default")
    assert (row.size, row.sha256) == (len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    assert b"".join(contents.FileContents(gateway.store).pieces(row)) == CONTENT
    assert len(objects_of(gateway)) == 1
