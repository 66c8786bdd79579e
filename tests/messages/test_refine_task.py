"""The task of the refiner: its fields, its objects, and its size."""

import json
from typing import Any

import pytest

from harness.paths import SAMPLES
from smalti.errors import MalformedMessageError
from smalti.messages import MAX_MESSAGE_BYTES, MAX_TO_REFINE, PictureToRefine, RefineTask, parse
from smalti.storage import JobKeys, ObjectRef, content_key

FIELDS: dict[str, Any] = json.loads((SAMPLES / "messages" / "2.RefineTask.json").read_text(encoding="utf-8"))
SHA = "0123456789abcdef" * 4


def parsed(**changes: Any) -> RefineTask:
    fields = {name: value for name, value in {**FIELDS, **changes}.items() if value is not None}
    task = parse(json.dumps(fields), now=0)
    assert isinstance(task, RefineTask)
    return task


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"version": 1}, "refine needs version 2"),
        ({"refiner": None}, "needs the tokens, the encoding, and the revision"),
        ({"second_pass": {"upscale": 3}}, "upscale"),
        ({"pictures": []}, "pictures"),
        ({"pictures": FIELDS["pictures"] * 2}, "a candidate occurs twice"),
    ],
)
def test_fields_are_checked(changes: dict[str, Any], problem: str) -> None:
    parsed()
    with pytest.raises(MalformedMessageError, match=problem):
        parsed(**changes)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("picture", content_key("jobs/7f3a/candidates/2.png", SHA)),
        ("tokens", "jobs/other/tokens/0.safetensors"),
        ("encoding", "jobs/other/encoding.safetensors"),
    ],
)
def test_objects_are_those_of_the_job(name: str, key: str) -> None:
    with pytest.raises(MalformedMessageError):
        parsed(pictures=[{**FIELDS["pictures"][0], name: {"key": key, "sha256": SHA}}])


def test_largest_task_fits() -> None:
    keys = JobKeys("j" * 64)

    def ref(name: str) -> ObjectRef:
        return ObjectRef(key=content_key(name, SHA), sha256=SHA)

    pictures = tuple(
        PictureToRefine(
            candidate=index,
            picture=ref(keys.candidate(index)),
            tokens=ref(keys.tokens(1023)),
            row=63,
            encoding=ref(keys.encoding_of("a cat")),
        )
        for index in range(2**20 - MAX_TO_REFINE, 2**20)
    )
    sources = [picture.model_dump(mode="json") for picture in pictures]
    task = parsed(job="j" * 64, prompt="\x01" * 4000, pictures=sources)
    assert len(task.to_json().encode()) <= MAX_MESSAGE_BYTES
