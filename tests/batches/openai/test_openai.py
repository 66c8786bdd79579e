"""Requests of OpenAI's Batch API become rows, and results become its answers, as the client's own types read them."""

import io
import json
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any

import openai.types
import pytest
from PIL import Image

from smalti.batches import (
    BatchPlan,
    BatchPrompt,
    FolderPlace,
    InputFormat,
    PromptResult,
    finish,
)
from smalti.batches import openai as api
from smalti.batches.reading import EditSource
from smalti.errors import DamagedObjectError, InvalidInputError
from tests.batches.conftest import DEFAULTS, plan_of
from tests.batches.drawn import describe, draw, draw_all

OPTIONS = api.OpenAIOptions(model="tiny", size="8x8")
PICTURE = "data:image/png;base64," + b64encode(b"a picture").decode()


def line(custom_id: str = "a", url: str = api.GENERATIONS, method: str = "POST", **body: Any) -> bytes:
    request = {"custom_id": custom_id, "method": method, "url": url, "body": body}
    return json.dumps(request).encode() + b"\n"


def plan(content: bytes, **options: Any) -> BatchPlan:
    return plan_of(content, "openai", **{"openai": OPTIONS, "skip_invalid": True, **options})


def prompts_of(plan: BatchPlan) -> list[BatchPrompt]:
    plan.check()
    return [prompt for shard in plan.shards() for prompt in shard.prompts]


def test_requests_are_rows() -> None:
    content = (
        line("first", prompt="a fox", model="tiny", size="8x8", user="me")
        + b"\n"
        + line("second", prompt="a cat", n=3, quality="high", seed="9223372036854775807", top_k=7, vary=True)
        + line("third", prompt="a dog", n=2, quality="low", output_format="webp", output_compression=50)
    )
    first, second, third = prompts_of(plan(content))
    assert (first.id, first.prompt, first.n, first.candidates) == ("first", "a fox", 1, 4)
    assert (second.n, second.candidates, second.seed, second.sampling.top_k, second.vary) == (
        3,
        8,
        2**63 - 1,
        7,
        True,
    )
    assert (third.n, third.candidates) == (2, 2)
    assert [each.row for each in (first, second, third)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("quality", "n", "candidates"),
    [
        (None, 6, 6),
        ("auto", 1, 4),
        ("low", 1, 1),
        ("medium", 1, 4),
        ("standard", 6, 6),
        ("hd", 1, 8),
        ("max", 1, 10),
    ],
)
def test_quality_is_a_number_of_candidates(quality: str | None, n: int, candidates: int) -> None:
    defaults = DEFAULTS.model_copy(update={"max_candidates": 10})
    [prompt] = prompts_of(plan(line(prompt="a fox", n=n, quality=quality), defaults=defaults))
    assert (prompt.n, prompt.candidates) == (n, candidates)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({}, "column 'body.prompt': field required"),
        ({"prompt": " "}, "column 'body.prompt': is empty; say what to draw"),
        ({"prompt": 1}, "column 'body.prompt': input should be a valid string"),
        ({"prompt": "b", "n": 0}, "column 'body.n': input should be greater than or equal to 1"),
        ({"prompt": "b", "n": 5000}, "column 'body.n': input should be less than or equal to 1024"),
        ({"prompt": "b", "n": "2"}, "column 'body.n': input should be a valid integer"),
        ({"prompt": "b", "n": 3, "candidates": 2}, "column 'body.n': 3 pictures cannot be chosen from 2"),
        ({"prompt": "b", "model": "dall-e-3"}, "column 'body.model': must be tiny, which draws this batch"),
        ({"prompt": "b", "size": "1024x1024"}, "column 'body.size': must be 8x8 or auto"),
        (
            {"prompt": "b", "response_format": "url"},
            "column 'body.response_format': input should be 'b64_json'",
        ),
        ({"prompt": "b", "stream": True}, "column 'body.stream': input should be False"),
        ({"prompt": "b", "output_compression": 50}, "column 'body.output_compression': must be 100 for png"),
        ({"prompt": "b", "top_p": 2}, "column 'body.top_p': input should be less than or equal to 1"),
        ({"prompt": "b", "colour": "red"}, "column 'body.colour': there is no such key"),
    ],
)
def test_a_body_that_cannot_be_used_costs_its_line(body: dict[str, Any], problem: str) -> None:
    content = line("good", prompt="a fox") + line("bad", **body)
    good, bad = prompts_of(plan(content))
    assert good.problem is None
    assert (bad.id, bad.invalid) == ("bad", True)
    assert bad.problem is not None
    assert bad.problem.startswith(problem)
    with pytest.raises(InvalidInputError, match=r"^input: line 2, column 'body"):
        plan(content, skip_invalid=False).check()


GOOD = {"custom_id": "b", "method": "POST", "url": api.GENERATIONS, "body": {"prompt": "a cat"}}


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ("{", "line 2: is not JSON"),
        ("[]", "line 2: must be a JSON object, not a list"),
        ({**GOOD, "custom_id": 7}, "line 2, column 'custom_id': must be a text"),
        ({**GOOD, "custom_id": "x" * 257}, "line 2, column 'custom_id': must be a text of 1 to 256"),
        ({**GOOD, "custom_id": "\0"}, "line 2, column 'custom_id': must not contain the NUL"),
        ({**GOOD, "custom_id": "a"}, "line 2: the id is also that of line 1"),
        ({**GOOD, "method": "GET"}, "line 2, column 'method': must be POST"),
        ({**GOOD, "url": "/v1/embeddings"}, "line 2, column 'url': must be /v1/images/generations, the same"),
        ({**GOOD, "url": api.EDITS}, "line 2, column 'url': must be /v1/images/generations, the same"),
        ({**GOOD, "more": 1}, "line 2, column 'more': there is no such key"),
        ({key: GOOD[key] for key in ("custom_id", "method", "url")}, "line 2, column 'body': is missing"),
    ],
)
def test_a_line_that_is_no_request_ends_it(record: Any, problem: str) -> None:
    text = record if isinstance(record, str) else json.dumps(record)
    with pytest.raises(InvalidInputError, match=f"^input: {problem}"):
        plan(line("a", prompt="a fox") + text.encode()).check()


def test_the_first_request_tells_endpoint_and_model() -> None:
    content = b"\n" + line(url=api.EDITS, prompt="a fox", model="tiny")
    assert api.first_request(io.BytesIO(content)) == (api.EDITS, "tiny")
    assert api.first_request(io.BytesIO(line(prompt="a fox"))) == (api.GENERATIONS, None)
    for bad, problem in (
        (b"\n", "has no requests"),
        (b"x\n", "line 1: is not JSON"),
        (b"{}", "line 1, column 'url'"),
    ):
        with pytest.raises(InvalidInputError, match=problem):
            api.first_request(io.BytesIO(bad))


def test_reading_may_begin_with_any_request() -> None:
    content = b"".join(
        line(f"{row}", api.EDITS, prompt="a", images=[{"file_id": f"{row}"}]) for row in range(5)
    )
    made = plan(content, shard_prompts=2, tokens_of=lambda source: (int(source.image),))
    found = [(prompt.row, prompt.id, prompt.given) for shard in made.shards(1) for prompt in shard.prompts]
    assert found == [(row, f"{row}", (row,)) for row in (2, 3, 4)]


def test_edits_get_their_tokens() -> None:
    content = (
        line("a", api.EDITS, prompt="a fox", images=[{"image_url": PICTURE}], mask={"file_id": "file-1"})
        + line("b", api.EDITS, prompt="a cat", images=[{"file_id": "file-2"}])
        + line("c", api.EDITS, prompt="a dog", images=[{"file_id": "none"}])
        + line("d", api.EDITS, prompt="a dog", images=[{"image_url": "https://example.com/fox.png"}])
        + line("e", api.EDITS, prompt="a dog", images=[{"file_id": "1", "image_url": PICTURE}])
        + line("f", api.EDITS, prompt="a dog")
    )
    asked: list[EditSource] = []

    def tokens_of(source: EditSource) -> tuple[int, ...]:
        asked.append(source)
        if source.image == "none":
            raise InvalidInputError("images", "there is no file none")
        return (1, 2, -1)

    prompts = prompts_of(plan(content, tokens_of=tokens_of))
    assert asked == [EditSource(PICTURE, "file-1"), EditSource("file-2"), EditSource("none")]
    assert [each.given for each in prompts] == [(1, 2, -1), (1, 2, -1), (), (), (), ()]
    assert [each.problem for each in prompts] == [
        None,
        None,
        "column 'body.images': there is no file none",
        "column 'body.images.0': image_url must hold the picture itself (data:image/png;base64,...); "
        "upload it otherwise",
        "column 'body.images.0': must have either file_id or image_url",
        "column 'body.images': field required",
    ]
    with pytest.raises(InvalidInputError, match=r"no row can be used; line 1: .*edits cannot be drawn here"):
        plan(content).check()
    assert api.data_url_content(PICTURE, "image") == b"a picture"
    for url in ("data:image/png,abc", "data:image/png;base64,%%%", "https://example.com"):
        with pytest.raises(InvalidInputError, match=r"^image: "):
            api.data_url_content(url, "image")


def test_answers(tmp_path: Path) -> None:
    content = (
        line("one", prompt="a fox", n=2)
        + line("two", prompt="a bad fox")
        + b"\n"
        + line("three", prompt="a cat", n=0)
        + line("four", prompt="a cat", output_format="jpeg", output_compression=80, quality="hd", user="me")
        + line("five", prompt="a cat", n=3, candidates=2)
    )
    made = plan(content, shard_prompts=2)
    place = FolderPlace(tmp_path / "out")
    parts = draw_all(made, place, tmp_path)
    assert finish(place, describe(made), parts).counts.drawn == 2
    results = [result for part in parts for result in PromptResult.parse("", part.load())]
    answers, errors = io.BytesIO(), io.BytesIO()
    context = api.AnswerContext(batch="b7", created=1_700_000_000, size="8x8", missing="batch_expired")
    reader = api.OpenAIReader(io.BytesIO(content), OPTIONS, DEFAULTS)
    counts = api.write_answers(reader.requests(), results[:-1], place.open, answers, errors, context)
    assert (counts.completed, counts.failed) == (2, 3)

    one, four = map(json.loads, answers.getvalue().splitlines())
    assert (one["custom_id"], four["custom_id"]) == ("one", "four")
    assert one["error"] is None
    assert one["response"]["status_code"] == 200
    body = openai.types.ImagesResponse.model_validate(one["response"]["body"])
    assert body.data is not None
    prompts = prompts_of(made)
    assert [b64decode(each.b64_json or "") for each in body.data] == [
        each.content for each in draw(prompts[0])
    ]
    assert (body.created, body.size, body.output_format) == (1_700_000_000, "8x8", "png")
    assert four["response"]["body"]["quality"] == "high"
    assert four["response"]["body"]["safety_identifier"] == "me"
    with Image.open(io.BytesIO(b64decode(four["response"]["body"]["data"][0]["b64_json"]))) as image:
        assert image.format == "JPEG"

    two, three, five = map(json.loads, errors.getvalue().splitlines())
    assert two["custom_id"] == "two"
    assert two["response"]["status_code"] == 500
    assert two["response"]["body"]["error"] == {
        "message": "cannot be drawn", "type": "server_error", "param": None, "code": "failed",
    }  # fmt: skip
    assert three["response"]["status_code"] == 400
    assert three["response"]["body"]["error"] == {
        "message": "input should be greater than or equal to 1",
        "type": "invalid_request_error",
        "param": "n",
        "code": "invalid_value",
    }
    assert (five["custom_id"], five["response"], five["error"]["code"]) == ("five", None, "batch_expired")
    ids = {each["id"] for each in (one, two, three, four, five)}
    assert ids == {f"batch_req_b7_{row}" for row in range(5)}


def test_a_tar_without_its_pictures_is_told(tmp_path: Path) -> None:
    content = line("one", prompt="a fox", n=2) + line("two", prompt="a cat")
    made = plan(content)
    place = FolderPlace(tmp_path)
    [part] = draw_all(made, place, tmp_path)
    results = PromptResult.parse("", part.load())
    context = api.AnswerContext(batch="b", created=0, size="8x8")

    def write(results: list[PromptResult]) -> None:
        reader = api.OpenAIReader(io.BytesIO(content), OPTIONS, DEFAULTS)
        api.write_answers(reader.requests(), results, place.open, io.BytesIO(), io.BytesIO(), context)

    write(results)
    with pytest.raises(DamagedObjectError, match="does not have the pictures of row 1"):
        write([results[0].model_copy(update={"pictures": results[0].pictures[:1]}), results[1]])
    undrawn = [result.model_copy(update={"state": "failed", "tar": None}) for result in results]
    with pytest.raises(DamagedObjectError, match="row 0 is out of order"):
        write(undrawn[::-1])


def test_openai_is_a_format(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="need options"):
        plan(line(prompt="a fox"), openai=None).check()
    assert InputFormat("openai") is InputFormat.OPENAI
