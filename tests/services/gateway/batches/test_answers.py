"""Batches of OpenAI's Batch API: their answers are files of the tenant."""

import json
from typing import Any

import pytest

from harness.batches import BatchHarness
from harness.fleet import card_of
from harness.gateway import MakeGateway
from smalti.batches import InputFormat
from smalti.errors import InvalidInputError
from smalti.services.gateway.batches.answers import store_answers
from smalti.services.gateway.files import FileContents
from tests.services.gateway.batches.test_planning import problem_of

URL = "/v1/images/generations"


def line(custom_id: str, url: str = URL, **body: Any) -> str:
    body = {"prompt": f"prompt {custom_id}", **body}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body})


def created(batches: BatchHarness, *lines: str, **changes: Any) -> str:
    options = {"format": InputFormat.OPENAI, "skip_invalid": True, "name": URL, **changes}
    return batches.planned(lines, **options)


def answers(batches: BatchHarness, file_id: str | None) -> list[Any]:
    """Returns the lines of a file with answers."""
    row = batches.gateway.gateway.files.get_ready(file_id or "", tenant="default")
    assert row.purpose == "batch_output"
    content = b"".join(FileContents(batches.store).pieces(row))
    return [json.loads(each) for each in content.splitlines()]


def test_answers_and_errors_are_files(batches: BatchHarness) -> None:
    card = card_of(batches.gateway).message
    size = f"{card.image_width}x{card.image_height}"
    batches.stages.fails = lambda prompt: "it cannot be drawn" if prompt.id == "c" else None
    batch = created(
        batches,
        line("a", n=2, size=size),
        line("b"),
        line("c"),
        line("d", size="1x1"),
        line("e", steps=3),
    )
    batches.run()
    row = batches.get(batch).batch
    assert (row.state, row.prompts, row.drawn, row.failed, row.invalid) == ("succeeded", 5, 2, 1, 2)
    done = answers(batches, row.output_file)
    assert [each["custom_id"] for each in done] == ["a", "b"]
    assert [each["response"]["status_code"] for each in done] == [200, 200]
    assert [len(each["response"]["body"]["data"]) for each in done] == [2, 1]
    failed = answers(batches, row.error_file)
    assert [each["custom_id"] for each in failed] == ["c", "d", "e"]
    assert [each["response"]["status_code"] for each in failed] == [500, 400, 400]
    assert failed[1]["response"]["body"]["error"]["param"] == "size"


def test_refusal_of_the_policy_is_told_as_such(
    make_gateway: MakeGateway, tmp_path_factory: pytest.TempPathFactory
) -> None:
    words = tmp_path_factory.mktemp("words") / "words.txt"
    words.write_text("dragon\n")
    batches = BatchHarness(make_gateway(write=3, policy_list=words))
    batch = created(batches, line("a"), line("b", prompt="a dragon"))
    batches.run()
    (refused,) = answers(batches, batches.get(batch).batch.error_file)
    assert (refused["custom_id"], refused["response"]["status_code"]) == ("b", 400)
    assert refused["response"]["body"]["error"] == {
        "message": "the operator's policy refuses the prompt",
        "type": "invalid_request_error",
        "param": None,
        "code": "content_policy_violation",
    }


def test_batch_without_failures_has_no_file_of_errors(batches: BatchHarness) -> None:
    batch = created(batches, line("a"))
    batches.run()
    row = batches.get(batch).batch
    assert row.error_file is None
    assert len(answers(batches, row.output_file)) == 1


def test_answers_are_written_once_whoever_finishes(
    batches: BatchHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(*arguments: Any, **named: Any) -> None:
        store_answers(*arguments, **named)
        raise Killed

    batch = created(batches, line("a"))
    with monkeypatch.context() as patched:
        patched.setattr("smalti.services.gateway.batches.finishing.store_answers", killed)
        with pytest.raises(Killed):
            batches.run()
    assert batches.state(batch) == "finishing"
    batches.pass_time(3600)
    batches.room.finish()
    assert batches.state(batch) == "succeeded"
    assert len(batches.keys("files/")) == 1


def test_input_that_is_gone_leaves_a_batch_without_answers(batches: BatchHarness) -> None:
    batch = created(batches, line("a"))
    batches.store.delete("inputs/prompts.txt")
    batches.run()
    row = batches.get(batch).batch
    assert (row.state, row.output_file, row.error_file) == ("succeeded", None, None)


def test_what_was_not_drawn_is_told_as_such(batches: BatchHarness) -> None:
    batch = created(batches, *(line(str(number)) for number in range(6)))
    first, *_ = batches.send()
    batches.handle(batches.stages.draw(first))
    batches.room.repository.cancel(batch)
    batches.room.finish()
    row = batches.get(batch).batch
    assert row.state == "cancelled"
    assert [each["custom_id"] for each in answers(batches, row.output_file)] == ["0", "1", "2", "3"]
    left = answers(batches, row.error_file)
    assert [(each["custom_id"], each["error"]["code"]) for each in left] == [
        ("4", "batch_cancelled"),
        ("5", "batch_cancelled"),
    ]


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ([line("a"), "no JSON"], "line 2: "),
        ([line("a"), line("a")], "line 2"),
        (
            [line("a"), line("b", url="/v1/images/edits")],
            "line 2, column 'url': must be /v1/images/generations",
        ),
    ],
)
def test_line_that_is_no_request_ends_the_batch(
    batches: BatchHarness, lines: list[str], problem: str
) -> None:
    error = problem_of(batches, created(batches, *lines))
    assert isinstance(error, InvalidInputError)
    assert problem in error.problem
