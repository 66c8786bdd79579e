"""Keys over HTTP: who is refused and how, what tenants see of each other, and signed URLs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import openai
import pytest
from pydantic import SecretStr

from harness.web import WebHarness
from smalti.errors import InvalidInputError
from smalti.services.gateway.identity import Role
from smalti.services.web.settings import web_settings
from smalti.settings import Auth
from tests.services.web.conftest import MakeWeb
from tests.services.web.test_native import events_of

JOB = {"prompt": "a blue cat", "n": 1, "candidates": 4}


class Tenants:
    """A web service whose gateway wants keys, and the keys of two tenants."""

    def __init__(self, make_web: MakeWeb, **settings: Any) -> None:
        self.web: WebHarness = make_web(auth=[Auth.KEYS], **settings)
        keys = self.web.gateway.keys
        self.red, _ = keys.create("red", [Role.DRAW], new_tenant=True)
        self.blue, _ = keys.create("blue", [Role.DRAW], new_tenant=True)

    @contextmanager
    def http(self, key: str = "") -> Iterator[httpx2.Client]:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        with self.web.client(headers=headers) as client:
            yield client


@pytest.fixture(params=["the gateway", "both"])
def tenants(request: pytest.FixtureRequest, make_web: MakeWeb, monkeypatch: pytest.MonkeyPatch) -> Tenants:
    """Keys are wanted by the gateway alone, or by the web service, too."""
    if request.param == "both":
        monkeypatch.setenv("SMALTI_AUTH", "keys")
    return Tenants(make_web, wall=True)


def test_refusals_have_the_form_of_each_api(tenants: Tenants) -> None:
    for key in ("", "sk-smalti-wrong"):
        with tenants.http(key) as http:
            refused = [
                http.get("/v1/models"),
                http.post("/v1/images/generations", json={"prompt": "a cat"}),
            ]
            for answer in refused:
                assert answer.status_code == 401
                assert answer.headers["www-authenticate"] == "Bearer"
                error = answer.json()["error"]
                assert (error["code"], error["type"], error["param"]) == (
                    "invalid_api_key", "invalid_request_error", None,
                )  # fmt: skip
                assert "key" in error["message"]
            native = [
                http.get("/api/jobs"),
                http.get("/api/jobs/none"),
                http.get("/api/models"),
                http.post("/api/jobs", json=JOB),
                http.get("/api/wall/events"),
                http.delete("/api/jobs/none"),
                http.get("/api/jobs/none/events"),
            ]
            for answer in native:
                assert answer.status_code == 401, answer.request.url
                assert answer.headers["content-type"] == "application/problem+json"
                assert answer.json()["reason"] == "UNAUTHENTICATED"
    assert tenants.web.jobs == []


def test_request_without_a_key_is_refused_before_its_body_is_read(
    make_web: MakeWeb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMALTI_AUTH", "jwt")
    tenants = Tenants(make_web)
    with tenants.http() as nobody, tenants.http(tenants.red) as red:
        for path in ("/v1/images/generations", "/v1/images/edits", "/api/jobs"):
            assert nobody.post(path, content=b"no JSON").status_code == 401
            assert red.post(path, content=b"no JSON").status_code == 400


def test_models_that_one_caller_was_told_are_not_for_others(tenants: Tenants) -> None:
    with tenants.http(tenants.red) as red, tenants.http() as nobody, tenants.http("sk-smalti-x") as wrong:
        assert red.get("/v1/models").status_code == 200
        assert [each.get("/v1/models").status_code for each in (nobody, wrong)] == [401, 401]


def test_what_needs_no_key_is_open(tenants: Tenants) -> None:
    with tenants.http() as http:
        for path in ("/", "/healthz", "/readyz", "/docs", "/openapi.json"):
            assert http.get(path).status_code == 200, path


def test_openai_client_draws_with_its_key_and_raises_without(tenants: Tenants) -> None:
    with openai.OpenAI(base_url=f"{tenants.web.url}/v1", api_key=tenants.red, max_retries=0) as client:
        assert client.images.generate(prompt="a blue cat", n=1).data
    with (
        openai.OpenAI(base_url=f"{tenants.web.url}/v1", api_key="sk-wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError) as refused,
    ):
        client.images.generate(prompt="a blue cat", n=1)
    assert refused.value.code == "invalid_api_key"


def test_role_that_is_missing_is_a_403(tenants: Tenants) -> None:
    with tenants.http(tenants.red) as http:
        answer = http.post("/api/jobs", json={**JOB, "priority": "batch"})
        assert (answer.status_code, answer.json()["reason"]) == (403, "NOT_PERMITTED")
        assert "needs the role" in answer.json()["detail"]


def test_jobs_of_other_tenants_are_not_found(tenants: Tenants) -> None:
    with tenants.http(tenants.red) as red, tenants.http(tenants.blue) as blue:
        job = red.post("/api/jobs", json=JOB).json()["id"]
        path = f"/api/jobs/{job}"
        image = {"job_id": job, "candidate": 0, "keep_rows": 1}
        answers = [
            blue.get(path), blue.post(f"{path}/cancel"), blue.delete(path), blue.get(f"{path}/events"),
            blue.post("/api/jobs", json={"prompt": "x", "initial_image": image}),
        ]  # fmt: skip
        assert {answer.status_code for answer in answers} == {404}
        assert blue.get("/api/jobs").json()["jobs"] == []
        assert [each["id"] for each in red.get("/api/jobs").json()["jobs"]] == [job]


def test_wall_is_that_of_the_tenant(tenants: Tenants) -> None:
    tenants.web.paused.set()
    with (
        tenants.http(tenants.red) as red,
        tenants.http(tenants.blue) as blue,
        red.stream("GET", "/api/wall/events") as answer,
        blue.stream("GET", "/api/wall/events") as other,
    ):
        seen, missed = events_of(answer.iter_lines()), events_of(other.iter_lines())
        assert next(seen)["data"] == next(missed)["data"] == {"drawings": []}
        red.post("/api/jobs", json=JOB).raise_for_status()
        tenants.web.draw_rows(1)
        assert next(seen)["event"] == "drawing"
        blue.post("/api/jobs", json={**JOB, "candidates": 3}).raise_for_status()
        tenants.web.draw_rows(1)
        drawn = next(missed)
        assert (drawn["event"], drawn["data"]["count"]) == ("drawing", 3)


def picture(tenants: Tenants) -> str:
    """Draws a picture, and returns its URL."""
    with tenants.http(tenants.red) as http:
        job = http.post("/api/jobs", json=JOB).json()["id"]
        tenants.web.wait(lambda: http.get(f"/api/jobs/{job}").json()["state"] == "succeeded")
        url: str = http.get(f"/api/jobs/{job}").json()["pictures"][0]["url"]
        return url


def test_signed_url_needs_no_key_of_its_reader(make_web: MakeWeb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALTI_AUTH", "keys")
    tenants = Tenants(make_web)
    own, _ = tenants.web.gateway.keys.create("default", [Role.WEB])
    url = picture(tenants)
    with tenants.http() as nobody:
        # Without a key of its own, the web service has nothing to read the picture with.
        assert nobody.get(url).status_code == 401
    tenants.web.restart(key=SecretStr(own))
    url = picture(tenants)
    with tenants.http() as nobody, tenants.http(tenants.blue) as blue:
        for reader in (nobody, blue):
            answer = reader.get(url)
            assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
            assert reader.get(f"{url}x").status_code == 403
        job = url.rpartition("/v1/images/")[2][:36]
        # The key of the web service is for signed URLs alone.
        assert nobody.get(f"/api/jobs/{job}").status_code == 401
        assert blue.get(f"/api/jobs/{job}").status_code == 404


def test_key_of_the_environment_is_not_that_of_visitors(
    make_web: MakeWeb, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`SMALTI_KEY` is for the clients of the person at the terminal; a web service that has it lends it to nobody."""
    web: WebHarness = make_web(auth=[Auth.KEYS])
    key, _ = web.gateway.keys.create("default", [Role.ADMIN])
    monkeypatch.setenv("SMALTI_KEY", key)
    web.restart()
    with web.client() as http:
        assert http.get("/api/jobs").status_code == 401


@pytest.mark.parametrize(("variables", "starts"), [
    ({}, False),
    ({"SMALTI_AUTH": "mtls"}, False),
    ({"SMALTI_AUTH": "keys"}, True),
    ({"SMALTI_AUTH": "mtls,jwt"}, True),
    ({"SMALTI_AUTH": "none"}, True),
    ({"SMALTI_WEB_OPEN": "1"}, True),
])  # fmt: skip
def test_service_that_others_reach_starts_only_decided(
    variables: dict[str, str], starts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"SMALTI_WEB_HOST": "0.0.0.0", **variables}.items():
        monkeypatch.setenv(name, value)
    if starts:
        assert web_settings().host == "0.0.0.0"
        return
    with pytest.raises(
        InvalidInputError, match=r"HOST=0\.0\.0\.0 lets others draw without a key; set SMALTI_AUTH"
    ):
        web_settings()
