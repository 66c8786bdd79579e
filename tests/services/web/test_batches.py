"""OpenAI's Batch API, with its own client: batches of a real gateway whose stages are played."""

import json
from base64 import b64encode
from typing import Any

import httpx2
import openai
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from harness.gateway_calls import mask_file
from harness.waiting import wait_until
from harness.web import SIZE, WebHarness, picture_file
from smalti.batches import ShardFile
from smalti.parameters import FREE
from smalti.services.web.openai.batches.conversion import batch_object
from smalti.v1.batch_pb2 import (
    BATCH_STATE_CANCELLED,
    BATCH_STATE_FINISHING,
    BATCH_STATE_SUCCEEDED,
    Batch,
)
from tests.services.web.conftest import refusal

GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"
SIZES = f"{SIZE}x{SIZE}"


@pytest.fixture(scope="module")
def with_batches() -> bool:
    return True


def line(custom_id: str, url: str = GENERATIONS, **body: Any) -> bytes:
    body = {"prompt": f"prompt {custom_id}", **body}
    record = {"custom_id": custom_id, "method": "POST", "url": url, "body": body}
    return json.dumps(record).encode() + b"\n"


def uploaded(client: openai.OpenAI, *lines: bytes, purpose: Any = "batch") -> str:
    return client.files.create(file=("requests.jsonl", b"".join(lines)), purpose=purpose).id


def create(client: openai.OpenAI, file: str, endpoint: Any = GENERATIONS, **options: Any) -> Any:
    return client.batches.create(input_file_id=file, endpoint=endpoint, completion_window="24h", **options)


def ended(client: openai.OpenAI, batch: str) -> Any:
    """Polls a batch until it has ended."""
    final = ("completed", "failed", "cancelled", "expired")
    wait_until(lambda: client.batches.retrieve(batch).status in final, 60)
    return client.batches.retrieve(batch)


def lines_of(client: openai.OpenAI, file: str | None) -> list[Any]:
    return [json.loads(each) for each in client.files.content(file or "").text.splitlines()]


def test_batch_is_created_polled_and_downloaded(client: openai.OpenAI) -> None:
    file = uploaded(client, line("a", n=2, size=SIZES), line("b", model="pictograms"), line("c", size="1x1"))
    made = create(client, file, metadata={"run": "7"})
    assert (made.object, made.endpoint, made.input_file_id) == ("batch", GENERATIONS, file)
    assert (made.completion_window, made.metadata) == ("24h", {"run": "7"})
    assert made.expires_at == made.created_at + 24 * 3600
    done = ended(client, made.id)
    assert (done.status, done.model, done.errors) == ("completed", "pictograms", None)
    assert done.request_counts.to_dict() == {"total": 3, "completed": 2, "failed": 1}
    assert done.created_at <= done.in_progress_at <= done.finalizing_at <= done.completed_at
    assert (done.failed_at, done.cancelled_at, done.expired_at) == (None, None, None)
    answers = lines_of(client, done.output_file_id)
    assert [each["custom_id"] for each in answers] == ["a", "b"]
    assert [len(each["response"]["body"]["data"]) for each in answers] == [2, 1]
    assert answers[0]["response"]["status_code"] == 200
    errors = lines_of(client, done.error_file_id)
    assert [each["custom_id"] for each in errors] == ["c"]
    assert errors[0]["response"]["body"]["error"]["param"] == "size"
    purposes = {each.id: each.purpose for each in client.files.list()}
    assert purposes[done.output_file_id] == purposes[done.error_file_id] == "batch_output"


@pytest.mark.parametrize(
    ("lines", "number", "param"),
    [
        ((line("a"), b"no JSON\n"), 2, None),
        ((b"\n", line("a"), line("b", url=EDITS)), 3, "url"),
        ((line("a"), line("b"), line("a")), 3, None),
        ((b"no JSON\n",), 1, None),
    ],
)
def test_line_that_is_no_request_fails_the_batch(
    client: openai.OpenAI, lines: tuple[bytes, ...], number: int, param: str | None
) -> None:
    failed = ended(client, create(client, uploaded(client, *lines)).id)
    assert failed.status == "failed"
    assert failed.failed_at >= failed.created_at
    [error] = failed.errors.data
    assert (error.code, error.line, error.param) == ("invalid_value", number, param)
    assert str(number) in error.message or param


def test_batch_is_cancelled(client: openai.OpenAI, web: WebHarness) -> None:
    web.paused.set()
    batch = create(client, uploaded(client, line("a")))
    assert batch.status == "validating"
    assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    web.paused.clear()
    done = ended(client, batch.id)
    assert done.status == "cancelled"
    assert done.cancelling_at is not None
    assert done.cancelled_at >= done.cancelling_at
    assert client.batches.cancel(batch.id).status == "cancelled"


def test_batch_that_finishes_after_it_was_cancelled_is_cancelling() -> None:
    batch = Batch(state=BATCH_STATE_FINISHING, ending=BATCH_STATE_CANCELLED, finish_time=Timestamp(seconds=7))
    shown = batch_object(batch)
    assert (shown.status, shown.cancelling_at, shown.finalizing_at) == ("cancelling", 7, None)
    batch.ending = BATCH_STATE_SUCCEEDED
    shown = batch_object(batch)
    assert (shown.status, shown.cancelling_at, shown.finalizing_at) == ("finalizing", None, 7)


def test_input_is_kept_while_its_batch_runs(client: openai.OpenAI, web: WebHarness) -> None:
    web.paused.set()
    file = uploaded(client, line("a"))
    batch = create(client, file)
    assert refusal(lambda: client.files.delete(file), 409).code == "wrong_state"
    web.paused.clear()
    ended(client, batch.id)
    assert client.files.delete(file).deleted


def test_list_has_pages(client: openai.OpenAI) -> None:
    file = uploaded(client, line("a"))
    made = [create(client, file).id for _ in range(3)][::-1]
    assert [batch.id for batch in client.batches.list(limit=2)][:3] == made
    page = client.batches.list(after=made[0], limit=1)
    assert ([batch.id for batch in page.data], page.has_more) == ([made[1]], True)
    assert refusal(lambda: client.batches.list(after="unknown"), 404).code == "batch_not_found"
    for batch in made:
        ended(client, batch)


def test_retry_makes_no_second_batch(client: openai.OpenAI, web: WebHarness) -> None:
    file = uploaded(client, line("a"))
    first = create(client, file)
    again = create(client, file, extra_headers={"x-stainless-retry-count": "1"})
    assert again.id == first.id
    key = {"idempotency-key": "one"}
    keyed = [create(client, file, extra_headers=key).id for _ in range(2)]
    assert keyed[0] == keyed[1] != first.id
    other = uploaded(client, line("b"))
    assert refusal(lambda: create(client, other, extra_headers=key), 409).code == "request_id_reused"
    assert create(client, other, extra_headers={"x-stainless-retry-count": "1"}).id not in (first.id, *keyed)


def test_edits_keep_what_the_mask_does_not_cover(client: openai.OpenAI, web: WebHarness) -> None:
    picture, mask = picture_file(1, 200), mask_file(SIZE)
    file = client.files.create(file=("cat.png", picture), purpose="vision").id
    lost = client.files.create(file=("lost.png", picture), purpose="vision").id
    url = f"data:image/png;base64,{b64encode(mask).decode()}"
    lines = [
        line("a", EDITS, images=[{"file_id": file}], mask={"image_url": url}),
        line("b", EDITS, images=[{"file_id": "unknown"}], mask={"image_url": url}),
        line("c", EDITS, images=[{"file_id": file}], mask={"image_url": "data:image/png;base64,AAAA"}),
        line("d", EDITS),
        line("e", EDITS, images=[{"file_id": lost}], mask={"image_url": url}),
    ]
    [key] = [info.key for info in web.gateway.store.objects("files/") if lost in info.key]
    web.gateway.store.delete(key)
    done = ended(client, create(client, uploaded(client, *lines), EDITS).id)
    assert [each["custom_id"] for each in lines_of(client, done.output_file_id)] == ["a"]
    errors = [each["response"]["body"]["error"] for each in lines_of(client, done.error_file_id)]
    assert [error["param"] for error in errors] == ["images", "mask", "images", "images"]
    assert "was deleted, or is damaged" in errors[3]["message"]
    assert "there is no file unknown" in errors[0]["message"]
    keys = [info.key for info in web.gateway.store.objects(f"batches/{done.id}/shards/")]
    first = ShardFile.parse(keys[0], web.gateway.store.get(keys[0]))[0]
    answer = client.images.edit(image=picture, mask=mask, prompt="prompt a")
    alone = web.gateway.jobs.get(str(answer.to_dict()["id"])).job
    assert FREE in first.given
    assert list(first.given) == alone.given


def test_refusals(client: openai.OpenAI, http: httpx2.Client) -> None:
    file = uploaded(client, line("a"))
    assert refusal(lambda: create(client, "unknown"), 404).code == "file_not_found"
    wrong = refusal(lambda: create(client, uploaded(client, line("a"), purpose="vision")), 400)
    assert wrong.param == "input_file_id"
    other = refusal(lambda: create(client, file, EDITS), 400)
    assert (other.param, "must be /v1/images/generations" in other.message) == ("endpoint", True)
    model = refusal(lambda: create(client, uploaded(client, line("a", model="gpt-image-9"))), 404)
    assert (model.param, model.code) == ("model", "model_not_found")
    label = refusal(lambda: create(client, file, metadata={"Größe": "x"}), 400)
    assert label.param is not None
    assert label.param.startswith("metadata")
    for change in ({"endpoint": "/v1/responses"}, {"completion_window": "1h"}, {"steps": 3}):
        body = {"input_file_id": file, "endpoint": GENERATIONS, "completion_window": "24h", **change}
        answer = http.post("/v1/batches", json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, next(iter(change)))
    for call in (client.batches.retrieve, client.batches.cancel):
        assert refusal(lambda call=call: call("unknown"), 404).code == "batch_not_found"
