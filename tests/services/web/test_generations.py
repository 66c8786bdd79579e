"""`POST /v1/images/generations` without streaming, and what surrounds it."""

import gzip
import io
import json
import socket
import threading
from base64 import b64decode
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from PIL import Image

from harness.telemetry import sample_reader
from harness.web import SIZE, TOKENS, WebHarness, picture_file
from smalti.services.web.openai.answers import revised_prompt
from smalti.testing.stages import wording
from smalti.v1.job_pb2 import ImageParameters, Job
from smalti.v1.prompt_pb2 import PromptReading
from tests.services.web.conftest import MakeWeb

PATH = "/v1/images/generations"
JSON = {"content-type": "application/json"}
KEY = {"idempotency-key": "order 17"}
RETRY = {"x-stainless-retry-count": "1"}


def generate(http: httpx2.Client, *, headers: dict[str, str] | None = None, **fields: Any) -> httpx2.Response:
    return http.post(PATH, json={"prompt": "a cat", **fields}, headers=headers)


def error_of(response: httpx2.Response) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]
    return error


# Pictures


def test_files_are_the_best_candidates(http: httpx2.Client, web: WebHarness) -> None:
    response = generate(http, n=2, candidates=8, seed=7, user="u1")
    assert response.status_code == 200
    body = response.json()
    assert [b64decode(each["b64_json"]) for each in body["data"]] == [picture_file(7, 7), picture_file(7, 6)]
    (snapshot,) = web.jobs
    assert (body["id"], body["seed"]) == (snapshot.job.id, "7")
    assert body["created"] == snapshot.job.created // 1_000_000
    assert (body["size"], body["output_format"], body["background"]) == (f"{SIZE}x{SIZE}", "png", "opaque")
    assert snapshot.job.labels["user"] == body["safety_identifier"] == "u1"


def test_usage_counts_the_tokens_of_all_candidates(http: httpx2.Client) -> None:
    usage = generate(http, n=2, candidates=8).json()["usage"]
    tokens = 8 * TOKENS
    # Two words, the start and the end.
    assert usage == {
        "input_tokens": 4,
        "input_tokens_details": {"image_tokens": 0, "text_tokens": 4},
        "output_tokens": tokens,
        "output_tokens_details": {"image_tokens": tokens, "text_tokens": 0},
        "total_tokens": tokens + 4,
    }


def test_words_that_a_candidate_was_given_are_not_the_prompt(http: httpx2.Client, web: WebHarness) -> None:
    body = generate(http, n=2, candidates=8, vary=True).json()
    assert [each.get("revised_prompt") for each in body["data"]] == [None, None]
    pictures = http.get(f"/api/jobs/{body['id']}").json()["pictures"]
    assert {each["wording"] for each in pictures} == {wording("a cat", 0), wording("a cat", 1)}


def test_prompt_in_words_that_the_model_knows_is_told() -> None:
    job = Job(parameters=ImageParameters(prompt="a kitten"), prompt_reading=PromptReading(drawn="a cat"))
    assert revised_prompt(job) == "a cat"
    job.parameters.prompt = "a cat"
    assert revised_prompt(job) is None


@pytest.mark.parametrize(
    ("quality", "candidates"),
    [("low", 3), ("standard", 16), ("high", 32), ("max", 64), (None, 32)],
)
def test_quality_is_the_number_of_candidates(
    http: httpx2.Client, web: WebHarness, quality: str | None, candidates: int
) -> None:
    assert generate(http, n=3, quality=quality).status_code == 200
    assert web.jobs[0].job.candidates == candidates


def test_urls_are_signed_and_expire(http: httpx2.Client, make_web: MakeWeb) -> None:
    fields: dict[str, Any] = {"n": 2, "candidates": 4, "seed": 3, "vary": False, "response_format": "url"}
    first, second = generate(http, **fields).json()["data"]
    assert set(first) == {"url"}
    file = http.get(first["url"])
    assert (file.content, file.headers["content-type"]) == (picture_file(3, 3), "image/png")
    assert http.head(first["url"]).headers["content-length"] == str(len(file.content))
    assert http.get(first["url"], headers={"if-none-match": file.headers["etag"]}).status_code == 304
    signature = parse_qs(urlsplit(first["url"]).query)["signature"][0]
    changed = second["url"].rpartition("=")[0] + f"={signature}"
    assert error_of(http.get(changed))["code"] == "url_expired"
    assert http.get(first["url"].replace("expires=", "expires=9")).status_code == 403
    assert http.get(first["url"].split("?")[0]).status_code == 400
    short = make_web(url_lifetime=0.001)
    with short.client() as other:
        (picture,) = generate(other, n=1, candidates=1, response_format="url").json()["data"]
        short.wait(lambda: other.get(picture["url"]).status_code == 403)


@pytest.mark.parametrize(("output_format", "kind"), [("jpeg", "JPEG"), ("webp", "WEBP")])
def test_files_in_other_formats(http: httpx2.Client, output_format: str, kind: str) -> None:
    fields: dict[str, Any] = {
        "n": 1,
        "candidates": 1,
        "output_format": output_format,
        "output_compression": 80,
    }
    file = b64decode(generate(http, **fields).json()["data"][0]["b64_json"])
    assert Image.open(io.BytesIO(file)).format == kind
    url = generate(http, **fields, response_format="url").json()["data"][0]["url"]
    found = http.get(url)
    assert found.headers["content-type"] == f"image/{output_format}"
    assert Image.open(io.BytesIO(found.content)).format == kind


def test_parameters_without_effect_are_accepted(http: httpx2.Client) -> None:
    fields: dict[str, Any] = {
        "background": "transparent",
        "style": "vivid",
        "moderation": "low",
        "size": "auto",
    }
    assert generate(http, n=1, candidates=1, **fields).status_code == 200


# Refusals


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"prompt": ""}, "prompt", "is empty"),
        ({"prompt": " \n"}, "prompt", "is empty"),
        ({"prompt": "x" * 10_000}, "prompt", "at most 4000 characters"),
        ({"prompt": "a\0cat"}, "prompt", "NUL"),
        ({"prompt": "a \ud800 cat"}, "prompt", "cannot be used"),
        ({"prompt": 7}, "prompt", "should be a valid string"),
        ({"prompt": None}, "prompt", "should be a valid string"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": 1000}, "n", "between 1 and 256"),
        ({"n": "3"}, "n", "should be a valid integer"),
        ({"n": 10**30}, "n", "cannot be used"),
        ({"size": "1024x1024"}, "size", f"draws {SIZE}x{SIZE}"),
        ({"quality": "best"}, "quality", "should be 'auto', 'low'"),
        ({"response_format": "tiff"}, "response_format", "'url' or 'b64_json'"),
        ({"output_compression": 50}, "output_compression", "use jpeg or webp"),
        ({"partial_images": 2}, "partial_images", "needs stream"),
        ({"stream": True, "response_format": "url"}, "response_format", "must be b64_json"),
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"top_p": 2}, "top_p", "less than or equal to 1"),
        ({"seed": -1}, "seed", "from 0 to 2^63 - 1"),
        ({"user": "u" * 300}, "user", "at most 256 characters"),
        ({"steps": 50}, "steps", "there is no such parameter"),
    ],
)
def test_bad_input_is_refused_by_name(
    http: httpx2.Client, web: WebHarness, fields: dict[str, Any], param: str, message: str
) -> None:
    # The client itself would refuse half of a surrogate pair.
    response = http.post(PATH, content=json.dumps({"prompt": "a cat", **fields}), headers=JSON)
    assert response.status_code == 400
    error = error_of(response)
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert message in error["message"]
    assert web.jobs == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"a cat"',
        b"\xff\xfe",
        b'{"prompt":' + b"[" * 100_000,
        b'{"prompt": "a", "seed": ' + b"9" * 10_000 + b"}",
        b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "a"' + b', "prompt": {"a": [[1]]}' * 5000 + b"}",
        gzip.compress(b'{"prompt": "a"' + b" " * 2**20 + b"}"),
    ],
)
def test_damaged_body_is_refused(http: httpx2.Client, web: WebHarness, body: bytes) -> None:
    response = http.post(PATH, content=body, headers=JSON)
    assert response.status_code == 400
    assert len(error_of(response)["message"]) < 300
    assert web.jobs == []


def test_other_errors_have_the_four_keys_too(http: httpx2.Client) -> None:
    assert error_of(generate(http, model="dall-e-3")) == {
        "message": "there is no model 'dall-e-3'; there is pictograms",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }
    for response, status, code in (
        (http.get(PATH), 405, "method_not_allowed"),
        (http.get("/v1/nothing"), 404, "not_found"),
        (
            http.get("/v1/images/no-picture/content?format=png&expires=1&signature=x"),
            404,
            "picture_not_found",
        ),
    ):
        assert response.status_code == status
        assert error_of(response)["code"] == code


def test_full_gateway_is_a_429_that_says_when_to_come_again(make_web: MakeWeb) -> None:
    web = make_web(gateway={"open_jobs": 1})
    web.paused.set()
    with web.client() as http:
        assert http.post("/api/jobs", json={"prompt": "a cat"}).status_code == 201
        response = generate(http)
    assert response.status_code == 429
    assert error_of(response)["code"] == "rate_limit_exceeded"
    assert 1 <= int(response.headers["retry-after"]) <= 60
    assert int(response.headers["retry-after-ms"]) > 0


def test_models(http: httpx2.Client) -> None:
    listed = http.get("/v1/models").json()
    assert listed["object"] == "list"
    (model,) = listed["data"]
    assert (model["id"], model["object"]) == ("pictograms", "model")
    assert http.get("/v1/models/pictograms").json() == model
    assert error_of(http.get("/v1/models/huge"))["code"] == "model_not_found"


# Repeats, and clients that go away


@pytest.fixture
def paused(web: WebHarness) -> WebHarness:
    """A web service whose jobs wait until `paused` is cleared."""
    web.paused.set()
    return web


def give_up(web: WebHarness, *, headers: dict[str, str] | None = None, **fields: Any) -> None:
    """Sends a request, and closes the connection once the job is there."""
    before = len(web.jobs)
    body = json.dumps({"prompt": "a cat", **fields})
    head = {"host": "x", "content-length": str(len(body)), **JSON, **(headers or {})}
    lines = [f"POST {PATH} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items()), "", body]
    with socket.create_connection(("127.0.0.1", int(web.url.rpartition(":")[2]))) as connection:
        connection.sendall("\r\n".join(lines).encode())
        web.wait(lambda: len(web.jobs) > before)


def test_job_of_a_client_that_goes_away_is_cancelled(paused: WebHarness) -> None:
    give_up(paused)
    assert paused.states() == ["queued"]
    paused.wait(lambda: paused.states() == ["cancelled"])
    paused.wait(lambda: sample_reader(paused.metrics)("cancelled_total", where="client gone") == 1)


def test_job_of_urls_continues_without_its_client(paused: WebHarness) -> None:
    give_up(paused, response_format="url")
    give_up(paused)
    paused.wait(lambda: paused.states() == ["cancelled", "queued"])


def test_retry_gets_the_job_of_the_first_try(make_web: MakeWeb) -> None:
    web = make_web(abandon=5.0)
    web.paused.set()
    give_up(web, n=1)
    give_up(web, n=2)
    web.paused.clear()
    with web.client() as http:
        body = generate(http, n=1, headers=RETRY).json()
        assert body["id"] == web.jobs[1].job.id
        # What was delivered is not given away again: an equal request means new pictures.
        assert generate(http, n=1, headers=RETRY).json()["id"] not in {job.job.id for job in web.jobs[1:]}
    assert len(web.jobs) == 3


def test_retry_does_not_take_the_job_of_another_call(make_web: MakeWeb) -> None:
    web = make_web(abandon=5.0)
    web.paused.set()
    bodies: list[Any] = []
    with web.client() as http:
        thread = threading.Thread(target=lambda: bodies.append(generate(http).json()))
        thread.start()
        web.wait(lambda: web.jobs)
        give_up(web, headers=RETRY)
        web.paused.clear()
        thread.join(30)
    assert len(web.jobs) == 2
    assert bodies[0]["id"] == web.jobs[1].job.id


def test_key_makes_one_job(http: httpx2.Client, web: WebHarness) -> None:
    first, second = (generate(http, n=1, headers=KEY).json() for _ in range(2))
    assert first == second
    assert len(web.jobs) == 1
    reused = generate(http, n=2, headers=KEY)
    assert reused.status_code == 409
    assert error_of(reused)["code"] == "request_id_reused"
    assert generate(http, n=1, headers={**KEY, "authorization": "Bearer other"}).json()["id"] != first["id"]
    assert error_of(generate(http, headers={"idempotency-key": "x" * 300}))["param"] == "idempotency-key"


def test_key_of_a_job_that_was_cancelled_makes_another(paused: WebHarness) -> None:
    give_up(paused, headers=KEY)
    paused.wait(lambda: paused.states() == ["cancelled"])
    paused.paused.clear()
    with paused.client() as http:
        assert generate(http, headers=KEY).status_code == 200
    assert paused.states() == ["succeeded", "cancelled"]


# The gateway


def test_gateway_that_restarts_is_waited_for(paused: WebHarness) -> None:
    bodies: list[Any] = []
    with paused.client() as http:
        http.get("/v1/models")
        thread = threading.Thread(target=lambda: bodies.append(generate(http)))
        thread.start()
        paused.wait(lambda: paused.jobs)
        paused.stop_gateway()
        paused.paused.clear()
        paused.start_gateway()
        thread.join(30)
    assert bodies[0].status_code == 200
    assert len(paused.jobs) == 1


def test_gateway_that_is_away_is_a_503(make_web: MakeWeb) -> None:
    web = make_web(retry=0.1)
    with web.client() as http:
        assert http.get("/readyz").status_code == 200
        web.stop_gateway()
        web.wait(lambda: http.get("/readyz").status_code == 503)
        assert http.get("/healthz").status_code == 200
        response = generate(http)
        web.start_gateway()
    assert response.status_code == 503
    answered = error_of(response)
    assert answered["type"] == "server_error"
    # Not where the gateway should be.
    assert "127.0.0.1" not in answered["message"]
    assert "is not available; the service's log has the cause under" in answered["message"]
    assert response.headers["retry-after"] == "1"
