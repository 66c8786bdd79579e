"""Limits of tenants over HTTP: a refusal says what is left and when to come again, in the form of each API."""

import httpx2
import openai
import pytest

from harness.web import WebHarness
from tests.services.web.conftest import MakeWeb

JOB = {"prompt": "a blue cat", "n": 1, "candidates": 4}


def draw(http: httpx2.Client, path: str = "/api/jobs") -> httpx2.Response:
    body = JOB if path == "/api/jobs" else {"prompt": "a blue cat", "n": 1}
    return http.post(path, json=body)


def test_requests_of_a_minute(make_web: MakeWeb) -> None:
    web: WebHarness = make_web(gateway={"requests_per_minute": 2})
    with web.client() as http:
        for _ in range(2):
            assert draw(http).status_code == 201
        refused = draw(http)
        assert refused.status_code == 429
        problem = refused.json()
        assert (problem["reason"], problem["quota"], problem["limit"], problem["left"]) == (
            "QUOTA_EXCEEDED", "requests_per_minute", 2, 0,
        )  # fmt: skip
        assert 0 < problem["retry_after"] <= 30
        assert problem["detail"].startswith("tenant default may create 2 jobs a minute; try again in ")
        refused = draw(http, "/v1/images/generations")
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert 1 <= int(refused.headers["retry-after"]) <= 30
        headers = {
            name: refused.headers[f"x-ratelimit-{name}-requests"] for name in ("limit", "remaining", "reset")
        }
        assert headers == {"limit": "2", "remaining": "0", "reset": f"{refused.headers['retry-after']}s"}
        assert refused.headers["x-should-retry"] == "true"
        web.gateway.clock.advance(30)
        assert draw(http).status_code == 201


def test_candidates_of_a_day_are_not_asked_for_again_at_once(make_web: MakeWeb) -> None:
    web: WebHarness = make_web(gateway={"candidates_per_day": 17, "idle_candidates": 16})
    day = 24 * 3600
    web.gateway.clock.advance(day - web.gateway.clock() % day + 3600)
    with openai.OpenAI(base_url=f"{web.url}/v1", api_key="any", max_retries=3) as client:
        assert client.images.generate(prompt="a blue cat", n=1).data
        with pytest.raises(openai.RateLimitError) as refused:
            client.images.generate(prompt="a blue cat", n=1)
    assert refused.value.code == "insufficient_quota"
    assert "1 are left today" in str(refused.value)
    headers = refused.value.response.headers
    assert headers["x-should-retry"] == "false"
    assert (headers["x-ratelimit-limit-candidates"], headers["x-ratelimit-remaining-candidates"]) == (
        "17",
        "1",
    )
    assert int(headers["retry-after"]) > 22 * 3600
    assert len(web.jobs) == 1


def test_job_names_a_webhook(make_web: MakeWeb) -> None:
    web: WebHarness = make_web()
    with web.client() as http:
        refused = http.post("/api/jobs", json={**JOB, "webhook": "https://example.org/"})
        assert (refused.status_code, refused.json()["field"]) == (400, "webhook")
        assert "has no secret that signs" in refused.json()["detail"]
