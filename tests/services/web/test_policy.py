"""Refusals of the operator's policy, as clients of the web service see them."""

from typing import Any

import openai
import pytest

from tests.services.web.conftest import MakeWeb

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("installed")]

PROMPT = "the operator's policy refuses the prompt: no hats, please"
PICTURES = "the operator's policy refuses every picture of the job: even"


def test_refusals_have_openais_code_and_our_reason(make_web: MakeWeb) -> None:
    web = make_web(gateway={"policy_hook": "sample"})
    with openai.OpenAI(base_url=f"{web.url}/v1", api_key="any", max_retries=0) as client:
        # The sample policy refuses hats, and even candidates, of which a single one is the first.
        for prompt, text in (("a hat", PROMPT), ("a cat", PICTURES)):
            with pytest.raises(openai.BadRequestError) as refused:
                client.images.generate(prompt=prompt, n=1, extra_body={"candidates": 1})
            assert (refused.value.code, refused.value.type) == (
                "content_policy_violation",
                "invalid_request_error",
            )
            body: Any = refused.value.body
            assert body["message"] == text
            assert refused.value.param is None
        stream = client.images.generate(prompt="a cat", n=1, stream=True, extra_body={"candidates": 1})
        with pytest.raises(openai.APIError, match=PICTURES):
            list(stream)
        answer = client.images.generate(prompt="a cat", n=2, extra_body={"candidates": 4})
        assert answer.data is not None
        assert len(answer.data) == 2
    with web.client() as http:
        problem = http.post("/api/jobs", json={"prompt": "a hat"}).json()
        assert (problem["status"], problem["reason"], problem["detail"]) == (400, "CONTENT_POLICY", PROMPT)
        newest = http.get("/api/jobs").json()["jobs"]
    assert newest[0]["progress"]["pictures_refused"] == 1
    assert newest[1]["error"]["reason"] == "CONTENT_POLICY"
