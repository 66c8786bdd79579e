"""Version 3 of the messages: routes, tenants and more, fields that a reader does not know, and hellos."""

import json
from typing import Any

import pytest

from harness.paths import SAMPLES
from smalti.errors import InvalidInputError, MalformedMessageError
from smalti.messages import (
    DEFAULT_VERSION,
    EncodeTask,
    RankTask,
    Stage,
    StageTask,
    message_settings,
    parse,
    parse_hello,
    queue_name,
)
from smalti.parameters import Priority
from smalti.storage import ObjectRef, content_key

ENCODE: dict[str, Any] = json.loads((SAMPLES / "messages" / "3.EncodeTask.json").read_text(encoding="utf-8"))
HELLO: dict[str, Any] = json.loads((SAMPLES / "messages" / "3.Hello.json").read_text(encoding="utf-8"))
SHA = "0123456789abcdef" * 4
KEY = "a1b2c3d4e5f6"


def encode_task(**changes: Any) -> EncodeTask:
    fields = {name: value for name, value in {**ENCODE, **changes}.items() if value is not None}
    task = parse(json.dumps(fields), now=0)
    assert isinstance(task, EncodeTask)
    return task


def ref(name: str) -> ObjectRef:
    return ObjectRef(key=content_key(name, SHA), sha256=SHA)


def all_tasks(encode: EncodeTask) -> list[StageTask]:
    """Returns the tasks of one chunk from the prompt to the scores, and the one that makes it again."""
    generate = encode.next(ref(encode.keys.encoding), encode.prompt)[0]
    decode = generate.next(ref(generate.keys.tokens(generate.chunk)))
    rank = decode.next(tuple(ref(decode.keys.candidate(index)) for index in decode.candidates))
    return [encode, generate, decode, rank, rank.from_the_start()]


def test_messages_have_version_2_until_it_is_said_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SMALTI_MESSAGES_WRITE", raising=False)
    assert message_settings().write == DEFAULT_VERSION == 2
    monkeypatch.setenv("SMALTI_MESSAGES_WRITE", "3")
    assert message_settings().write == 3
    monkeypatch.setenv("SMALTI_MESSAGES_WRITE", "4")
    with pytest.raises(InvalidInputError, match="SMALTI_MESSAGES_WRITE"):
        message_settings()


@pytest.mark.parametrize("name", ["tenant", "routes", "adapters"])
def test_new_fields_need_version_3(name: str) -> None:
    others = {each: None for each in ("tenant", "routes", "adapters") if each != name}
    encode_task(**others)
    with pytest.raises(MalformedMessageError, match=f"{name} needs version 3"):
        encode_task(version=2, **others)


def test_work_goes_to_the_queues_of_its_keys_and_elsewhere_to_those_of_the_stage() -> None:
    encode = encode_task(routes={"generate": KEY, "rank": KEY, "later": "ffffffffffff"}, priority="batch")
    names = [task.queue for task in all_tasks(encode)]
    assert names == [
        "smalti.encode.batch",
        f"smalti.generate.{KEY}.batch",
        "smalti.decode.batch",
        f"smalti.rank.{KEY}.batch",
        "smalti.encode.batch",
    ]
    assert queue_name(Stage.GENERATE, Priority.BATCH, KEY) == names[1]
    assert encode.done(ref(encode.keys.encoding)).queue == "smalti.events"


@pytest.mark.parametrize("routes", [{"decode": "short"}, {"decode": "A" * 12}, {"decode": 7}, ["decode"]])
def test_wrong_routes_are_refused(routes: Any) -> None:
    with pytest.raises(MalformedMessageError, match="routes"):
        encode_task(routes=routes)


def test_every_stage_passes_on_what_version_3_has_added_and_what_it_does_not_know() -> None:
    encode = encode_task(later={"deep": [1, None, "x"]})
    for task in all_tasks(encode):
        text = json.loads(task.to_json())
        assert text["later"] == {"deep": [1, None, "x"]}
        for name in ("tenant", "routes", "adapters"):
            assert text[name] == ENCODE[name]
        assert parse(task.to_json(), now=0) == task
        assert json.loads(task.next_attempt().to_json())["later"] == text["later"]


def test_an_unknown_field_never_takes_the_place_of_a_field_of_the_next_message() -> None:
    encode = encode_task(pictures="not pictures", tokens=3)
    *_, rank, _ = all_tasks(encode)
    assert isinstance(rank, RankTask)
    assert len(rank.pictures) == 2
    # The event to the gateway has fields of its own.
    assert "pictures" not in json.loads(encode.done(ref(encode.keys.encoding)).to_json())


def test_events_of_version_3_may_have_unknown_fields_and_older_messages_may_not() -> None:
    event = json.loads(encode_task().failed("invalid", "no").to_json())  # type: ignore[arg-type]
    assert json.loads(parse(json.dumps({**event, "later": 1})).to_json())["later"] == 1
    for text in ({**event, "version": 2}, {**event, "version": 1}):
        parse(json.dumps(text))
        with pytest.raises(MalformedMessageError, match=r"failed\.later"):
            parse(json.dumps({**text, "later": 1}))
    with pytest.raises(ValueError, match="no field typo in version 2"):
        EncodeTask(**{**ENCODE, "version": 2, "typo": 1})


def test_parts_of_a_message_may_have_unknown_fields_and_the_parameters_of_a_request_may_not() -> None:
    chunk = {**ENCODE["chunks"][0], "later": 1}
    assert json.loads(encode_task(chunks=[chunk]).to_json())["chunks"] == [chunk]
    with pytest.raises(MalformedMessageError, match="sampling"):
        encode_task(sampling={**ENCODE["sampling"], "later": 1})


def test_a_hello_goes_to_a_queue_of_its_own() -> None:
    hello = parse_hello(json.dumps({**HELLO, "later": 1}))
    assert (hello.stage, hello.stage_queue, hello.queue) == (Stage.ENCODE, Stage.EVENTS, "smalti.hello")
    assert json.loads(hello.to_json()) == {**HELLO, "later": 1}


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"worker": "me"},
        {"stage": "paint"},
        {"key": "x"},
        {"slots": 0},
        {"interval": 0},
        {"sent": 1e300},
        {"parts": {"decode": "x"}},
    ],
)
def test_a_malformed_hello_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(MalformedMessageError):
        parse_hello(json.dumps({**HELLO, **changes}))
    with pytest.raises(MalformedMessageError, match="kind"):
        parse(json.dumps(HELLO))
