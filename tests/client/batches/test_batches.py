"""Batches and files through both clients."""

import http.server
import io
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.batch_service import FILES
from harness.clients import AnyClient
from harness.grpc_server import asynchronous
from harness.image_service import ServedGateway
from smalti.client import AsyncClient, check_succeeded, has_ended
from smalti.client.batches import uploads
from smalti.client.batches.requests import create_batch_request
from smalti.errors import (
    BatchNotFoundError,
    InvalidInputError,
    NotSupportedError,
    RemoteError,
    StoredFileNotFoundError,
)
from smalti.parameters import Refinement
from smalti.v1 import batch_pb2
from smalti.v1.file_pb2 import FILE_STATE_READY


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a fox"}\n')
    return path


def test_every_option_is_in_the_request() -> None:
    request = create_batch_request(
        "file-1",
        None,
        {
            "name": "animals", "format": "csv", "columns": {"prompt": "caption"}, "ignore_columns": True,
            "skip_invalid": True, "picture_format": "webp", "shard_prompts": 64, "rank": 3, "slots": 32,
            "validate_only": True, "model": "wire", "n": 2, "candidates": 4, "seed": 5, "temperature": 0.5,
            "vary": True, "diversity": 0.25, "upscale": 2, "refine": Refinement(steps=2), "time_limit": 60.0,
            "retention": 3600.0, "labels": {"album": "a"}, "webhook": "https://a.example", "request_id": "r",
        },
    )  # fmt: skip
    assert request.input.file_id == "file-1"
    assert request.input.format == batch_pb2.BATCH_FORMAT_CSV
    assert dict(request.input.columns) == {"prompt": "caption"}
    assert request.input.ignore_columns
    assert request.input.skip_invalid
    assert request.picture_format == batch_pb2.PICTURE_FORMAT_WEBP
    assert (request.name, request.shard_prompts, request.rank, request.slots) == ("animals", 64, 3, 32)
    assert request.validate_only
    parameters = request.parameters
    assert (parameters.n, parameters.candidates, parameters.seed, parameters.upscale) == (2, 4, 5, 2)
    assert (parameters.sampling.temperature, parameters.diversity, parameters.vary) == (0.5, 0.25, True)
    assert (parameters.model.name, parameters.refine.steps) == ("wire", 2)
    assert (request.time_limit.seconds, request.retention.seconds) == (60, 3600)
    assert (request.labels["album"], request.webhook.url) == ("a", "https://a.example")
    assert request.request_id == "r"


def test_wrong_arguments_are_named() -> None:
    for source, key in ((None, None), ("file-1", "inputs/a.txt")):
        with pytest.raises(InvalidInputError, match="source"):
            create_batch_request(source, key, {})
    with pytest.raises(InvalidInputError, match="format: must be one of text, jsonl, csv, parquet, openai"):
        create_batch_request("file-1", None, {"format": "xml"})
    with pytest.raises(TypeError, match="prompt"):
        create_batch_request("file-1", None, {"prompt": "a fox"})  # type: ignore[typeddict-unknown-key]


def test_path_is_uploaded_and_drawn(client: AnyClient, served: ServedGateway, prompts: Path) -> None:
    batch = client.batches.create(prompts, name="animals", labels={"album": "a"})
    file, content = served.batches.files[batch.input.file_id]
    assert (file.name, file.purpose, content) == ("prompts.jsonl", "batch", prompts.read_bytes())
    versions = client.batches.watch(batch.id)
    assert [each.version for each in versions] == [1, 2, 3]
    assert [has_ended(each) for each in versions] == [False, False, True]
    check_succeeded(versions[-1])
    assert client.batches.get(batch.id).progress.prompts_drawn == 3


def test_lost_answer_creates_no_second_batch(client: AnyClient, served: ServedGateway, prompts: Path) -> None:
    client.batches.list()  # A server that has never answered is not retried.
    served.batches.lost_answers["CreateBatch"] = 1
    served.batches.lost_answers["UploadFile"] = 1
    client.batches.create(prompts)
    assert len(served.batches.batches) == 1
    assert len(served.batches.calls["CreateBatch"]) == len(served.batches.calls["UploadFile"]) == 2


def test_watch_that_breaks_resumes_where_it_was(
    client: AnyClient, served: ServedGateway, prompts: Path
) -> None:
    batch = client.batches.create(prompts)
    served.batches.breaks["WatchBatch"] = [1, 1]
    assert [each.version for each in client.batches.watch(batch.id)] == [1, 2, 3]
    assert [call.since_version for call in served.batches.calls["WatchBatch"]] == [0, 1, 2]


def test_batch_that_fails_says_why(client: AnyClient, prompts: Path) -> None:
    batch = client.batches.create(prompts, name="fail")
    with pytest.raises(NotSupportedError, match="it cannot be drawn"):
        check_succeeded(client.batches.watch(batch.id)[-1])


def test_batches_are_listed_paused_and_deleted(client: AnyClient, prompts: Path) -> None:
    made = [client.batches.create(prompts).id for _ in range(3)]
    assert [batch.id for batch in client.batches.list(states=["succeeded"])] == made[::-1]
    assert client.batches.page(page_size=2).next_page_token == "2"
    assert client.batches.pause(made[0]).state == batch_pb2.BATCH_STATE_PAUSED
    assert client.batches.resume(made[0]).state == batch_pb2.BATCH_STATE_RUNNING
    assert client.batches.cancel(made[0]).state == batch_pb2.BATCH_STATE_CANCELLED
    client.batches.delete(made[0])
    with pytest.raises(BatchNotFoundError, match=made[0]):
        client.batches.get(made[0])
    with pytest.raises(InvalidInputError, match="states"):
        client.batches.list(states=["drawn"])


def test_files_of_a_batch_arrive_whole_over_broken_connections(
    client: AnyClient, served: ServedGateway, prompts: Path, tmp_path: Path
) -> None:
    batch = client.batches.create(prompts)
    found = client.batches.files(batch.id)
    assert [file.name for file in found] == sorted(FILES)
    served.batches.breaks["DownloadBatchFile"] = [2, 1]
    for file in found:
        client.batches.save(batch.id, file, tmp_path / "file")
        assert (tmp_path / "file").read_bytes() == FILES[file.name]
    assert [call.offset for call in served.batches.calls["DownloadBatchFile"]][:3] == [0, 200, 300]


def test_damaged_file_is_not_written(
    client: AnyClient, served: ServedGateway, prompts: Path, tmp_path: Path
) -> None:
    batch = client.batches.create(prompts)
    (tar, *_) = client.batches.files(batch.id)
    served.batches.damaged = 1
    with pytest.raises(RemoteError, match=r"00000\.tar of batch batch-0 arrives damaged"):
        client.batches.save(batch.id, tar, tmp_path / "file.tar")
    assert list(tmp_path.glob("*.tar*")) == []


def test_files_are_uploaded_listed_read_and_deleted(client: AnyClient, tmp_path: Path) -> None:
    first = client.files.upload(b"a fox\n" * 100, name="prompts.txt", purpose="mine")
    client.files.upload(b"a cat\n", name="cats.txt")
    assert first.state == FILE_STATE_READY
    assert [file.name for file in client.files.list()] == ["prompts.txt", "cats.txt"]
    client.files.save(first, tmp_path / "file.txt")
    assert (tmp_path / "file.txt").read_bytes() == b"a fox\n" * 100
    client.files.delete(first.id)
    with pytest.raises(StoredFileNotFoundError, match=first.id):
        client.files.get(first.id)


def test_parts_are_joined_and_read_from_an_offset(client: AnyClient, served: ServedGateway) -> None:
    parts = [
        client.files.upload(io.BytesIO(text), name="part") for text in (b"a fox\n" * 50, b"a cat\n" * 50)
    ]
    whole = client.files.compose([part.id for part in parts], name="prompts.txt")
    served.batches.breaks["DownloadFile"] = [1]
    assert b"".join(client.files.read(whole, offset=290)) == b"a fox\na fox\n"[2:] + b"a cat\n" * 50
    client.files.list(name="prompts.txt", purpose="batch", after=parts[0].id, oldest_first=True, page_size=7)
    asked = served.batches.calls["ListFiles"][0]
    assert (asked.name, asked.purpose, asked.after_file_id, asked.oldest_first, asked.page_size) == (
        "prompts.txt", "batch", parts[0].id, True, 7,
    )  # fmt: skip


def test_file_that_cannot_be_uploaded_is_named(client: AnyClient, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"missing\.txt: cannot be read"):
        client.batches.create(tmp_path / "missing.txt")
    with pytest.raises(InvalidInputError, match="name: is missing"):
        client.files.upload(b"a fox")


@asynchronous
async def test_file_that_fails_while_it_is_sent_is_told(served: ServedGateway) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(5, "Input/output error")

    async with AsyncClient(served.address) as client:
        with pytest.raises(InvalidInputError, match=r"^file: cannot be read \(Input/output error\)$"):
            await client.files.upload(Broken(b"a fox"), name="prompts.txt")


class Store(http.server.BaseHTTPRequestHandler):
    """A store that takes one file."""

    received: bytes
    status = 200

    def do_PUT(self) -> None:
        """Takes a file, or refuses it."""
        type(self).received = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(self.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def store() -> Iterator[tuple[str, type[Store]]]:
    handler = type("OneStore", (Store,), {})
    server = http.server.HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/file", handler
    server.shutdown()
    thread.join()
    server.server_close()


def test_large_file_goes_to_the_store_itself(
    client: AnyClient, served: ServedGateway, store: tuple[str, type[Store]], tmp_path: Path
) -> None:
    served.batches.upload_url, handler = store
    large = tmp_path / "large.txt"
    large.write_bytes(b"a fox\n" * (uploads.MIN_DIRECT_BYTES // 6 + 1))
    assert client.files.upload(large).state == FILE_STATE_READY
    assert handler.received == large.read_bytes()
    assert not served.batches.calls["UploadFile"]


@pytest.mark.parametrize("url", ["", "refused", "file:///tmp/file"])
def test_large_file_goes_to_the_gateway_where_the_store_takes_none(
    client: AnyClient, served: ServedGateway, store: tuple[str, type[Store]], tmp_path: Path, url: str
) -> None:
    address, handler = store
    handler.status = 403
    served.batches.upload_url = address if url == "refused" else url
    content = b"a fox\n" * (uploads.MIN_DIRECT_BYTES // 6 + 1)
    file = client.files.upload(content, name="large.txt")
    # The reserved file is deleted.
    assert list(served.batches.files) == [file.id]
    assert served.batches.files[file.id][1] == content
