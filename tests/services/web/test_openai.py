"""OpenAI's own client for Python."""

import math
from base64 import b64decode
from typing import Any

import openai
import pytest

from harness.web import SIDE, TOKENS, WebHarness, picture_file


def test_generates_files_and_lists_models(client: openai.OpenAI) -> None:
    answer = client.images.generate(prompt="a cat", n=2, extra_body={"seed": 7, "candidates": 4})
    assert answer.data is not None
    assert answer.usage is not None
    assert [b64decode(each.b64_json or "") for each in answer.data] == [
        picture_file(7, 3),
        picture_file(7, 2),
    ]
    assert answer.usage.output_tokens == 4 * TOKENS
    assert answer._request_id
    assert [model.id for model in client.models.list()] == ["pictograms"]
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.generate(prompt="a cat", extra_body={"steps": 3})
    assert (refused.value.param, refused.value.code) == ("steps", "unknown_parameter")


def test_streams_partial_pictures(client: openai.OpenAI, web: WebHarness) -> None:
    web.paused.set()
    stream = client.images.generate(
        prompt="a cat", n=2, stream=True, partial_images=2, extra_body={"seed": 7, "candidates": 4}
    )
    third = math.ceil(SIDE / 3)
    tasks = web.draw_rows(third)
    events: list[Any] = []
    for event in stream:
        events.append(event)
        if event.type == "image_generation.partial_image":
            if event.partial_image_index == 0:
                web.draw_more(tasks, rows=2 * third)
            else:
                web.finish(tasks)
    partial, completed = events[:-2], events[-2:]
    assert [event.partial_image_index for event in partial] == [0, 1]
    assert [event.type for event in completed] == ["image_generation.completed"] * 2
    assert [b64decode(event.b64_json) for event in completed] == [picture_file(7, 3), picture_file(7, 2)]
    assert [event.usage.output_tokens for event in completed] == [0, 4 * TOKENS]


def test_error_in_a_stream_is_raised(client: openai.OpenAI, web: WebHarness) -> None:
    web.paused.set()
    stream = client.images.generate(prompt="a cat", stream=True)
    web.gateway.cancel(web.jobs[0].job.id)
    with pytest.raises(openai.APIError, match="was cancelled"):
        list(stream)


def test_job_of_a_stream_that_is_closed_is_cancelled(client: openai.OpenAI, web: WebHarness) -> None:
    web.paused.set()
    stream = client.images.generate(prompt="a cat", stream=True)
    assert web.states() == ["queued"]
    stream.close()
    web.wait(lambda: web.states() == ["cancelled"])
