"""Messages: validation, the messages that follow from others, and reading old versions."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.paths import SAMPLES
from smalti.errors import (
    ExpiredMessageError,
    MalformedMessageError,
    MessageError,
    OversizedMessageError,
    UnknownVersionError,
)
from smalti.messages import (
    MAX_CHUNKS,
    MAX_CLOCK_SKEW_SECONDS,
    MAX_GIVEN_TOKENS,
    MAX_MESSAGE_BYTES,
    VERSION,
    Chunk,
    DecodeTask,
    EncodeTask,
    Failed,
    FailureReason,
    GenerateTask,
    PictureToRefine,
    Progress,
    PromptReading,
    RankTask,
    RefineTask,
    Stage,
    StageDone,
    StageTask,
    Trace,
    parse,
    parse_hello,
)
from smalti.parameters import FREE, Priority, Refinement, SamplingParameters, SecondPass
from smalti.storage import ObjectRef, content_key

OLD_MESSAGES = SAMPLES / "messages"
LATER = 4_000_000_000.0
SHA = "0123456789abcdef" * 4


def encode_task(**changes: Any) -> EncodeTask:
    fields: dict[str, Any] = {
        "job": "7f3a",
        "attempt": 2,
        "lease": 3,
        "expires": LATER,
        "priority": Priority.BATCH,
        "trace": Trace(traceparent=f"00-{'ab' * 16}-{'cd' * 8}-01"),
        "model": "tiny",
        "revision": "sha256:12",
        "prompt": "an avocado armchair, “Dalí”",
        "seed": 2**63 - 1,
        "sampling": SamplingParameters(top_k=7),
        "candidates_in_job": 3,
        "given": (5, 0, 9),
        "chunks": (Chunk(chunk=0, candidates=(0, 1)), Chunk(chunk=1, candidates=(2,))),
    }
    return EncodeTask(**{**fields, **changes})


def ref(name: str) -> ObjectRef:
    return ObjectRef(key=content_key(name, SHA), sha256=SHA)


def refine_task(encode: EncodeTask, **changes: Any) -> RefineTask:
    """Returns the task to refine a picture of a job, as the gateway makes it."""
    keys = encode.keys
    fields = encode.model_dump(
        include=set(StageTask.model_fields) - {"given", "sampling", "priority", "trace"}
    )
    picture = PictureToRefine(
        candidate=1,
        picture=ref(keys.candidate(1)),
        tokens=ref(keys.tokens(0)),
        row=1,
        encoding=ref(keys.encoding),
    )
    more: dict[str, Any] = {
        "sampling": encode.sampling,
        "priority": encode.priority,
        "trace": encode.trace,
        "chunk": 2,
        "second_pass": SecondPass(upscale=2, refine=Refinement(strength=0.5, steps=3)),
        "refiner": "sha256:34",
        "pictures": (picture,),
    }
    return RefineTask(**{**fields, **more, **changes})


def one_of_each() -> list[Any]:
    """Returns the messages of one chunk from the prompt to the scores, as the stages make them."""
    encode = encode_task()
    generate = encode.next(ref(encode.keys.encoding), "an armchair")[0]
    decode = generate.next(ref(generate.keys.tokens(0)))
    rank = decode.next(tuple(ref(decode.keys.candidate(index)) for index in decode.candidates))
    return [
        encode,
        generate,
        decode,
        rank,
        refine_task(encode),
        encode.done(
            ref(encode.keys.encoding),
            seconds=0.5,
            reading=PromptReading(
                effective_prompt="an armchair",
                cut=True,
                unknown=("avocado",),
                left_out=("Dalí",),
                notice="no avocado",
            ),
        ),
        generate.progress(3, 16, ((1, 2), (3, 4))),
        decode.failed(FailureReason.EXHAUSTED, "the store is away"),
    ]


def test_messages_survive_serialization() -> None:
    for message in one_of_each():
        assert parse(message.to_json()) == message


def test_following_messages_keep_all_fields() -> None:
    encode = encode_task()
    generates = encode.next(ref("jobs/7f3a/encoding.safetensors"), "an armchair")
    assert [(task.chunk, task.candidates) for task in generates] == [(0, (0, 1)), (1, (2,))]
    decode = generates[1].next(ref("jobs/7f3a/tokens/1.safetensors"))
    rank = decode.next((ref("jobs/7f3a/candidates/2.png"),))
    kinds = (EncodeTask, GenerateTask, DecodeTask, RankTask)
    stages = (Stage.ENCODE, Stage.GENERATE, Stage.DECODE, Stage.RANK)
    for task, kind, stage in zip((encode, generates[1], decode, rank), kinds, stages, strict=True):
        assert type(task) is kind
        assert task.stage_queue is stage
        assert task.queue == f"smalti.{stage}.batch"
        for name in (
            "job",
            "attempt",
            "lease",
            "expires",
            "priority",
            "trace",
            "model",
            "revision",
            "prompt",
            "seed",
            "sampling",
            "candidates_in_job",
            "given",
        ):
            assert getattr(task, name) == getattr(encode, name), name
    assert {task.effective_prompt for task in (*generates, decode, rank)} == {"an armchair"}


def test_effective_prompt_is_sent_only_if_it_differs_from_the_prompt() -> None:
    encode = encode_task()
    [generate, _] = encode.next(ref(encode.keys.encoding), encode.prompt)
    assert generate.effective_prompt is None
    assert "effective_prompt" not in generate.to_json()


def varied(**changes: Any) -> tuple[EncodeTask, dict[int, ObjectRef]]:
    """Returns a task with wordings, and the encodings of its candidates; two of them share one."""
    encode = encode_task(vary=True, keep_features=True, **changes)
    two, one = (ref(encode.keys.encoding_of(wording)) for wording in ("a flat fox", "a big fox"))
    return encode, {0: two, 1: one, 2: two}


def test_each_candidate_has_the_encoding_of_its_wording() -> None:
    encode, encodings = varied()
    generates = encode.next(encodings, "an armchair")
    assert [task.encodings for task in generates] == [(encodings[0], encodings[1]), (encodings[2],)]
    for task in generates:
        assert task.encoding is None
        decode = task.next(ref(task.keys.tokens(task.chunk)))
        rank = decode.next(tuple(ref(task.keys.candidate(index)) for index in task.candidates))
        for message in (encode, task, decode, rank, rank.from_the_start()):
            assert parse(message.to_json()) == message
            assert message.vary
            assert message.keep_features


def test_a_message_without_wordings_is_as_it_was_before_there_were_any() -> None:
    for message in one_of_each():
        assert not {"vary", "keep_features", "encodings"} & json.loads(message.to_json()).keys()
        if isinstance(message, EncodeTask):
            assert json.loads(message.to_json())["sampling"].keys() == {
                "guidance_scale", "temperature", "top_k", "top_p",
            }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"encodings": []}, "an encoding for each candidate"),
        ({"encodings": [{"key": "jobs/7f3a/encodings/a", "sha256": SHA}]}, "an encoding for each candidate"),
        (
            {"encodings": [{"key": "jobs/other/encodings/a", "sha256": SHA}] * 2},
            "must be in jobs/7f3a/encodings/",
        ),
        (
            {"encodings": [{"key": "jobs/7f3a/tokens/a", "sha256": SHA}] * 2},
            "must be in jobs/7f3a/encodings/",
        ),
        ({"encoding": {"key": "jobs/7f3a/encoding.safetensors", "sha256": SHA}}, "an encoding for each"),
        ({"vary": False}, "must be to jobs/7f3a/encoding.safetensors"),
        ({"version": 1, "effective_prompt": None}, "vary needs version 2"),
    ],
)
def test_a_task_names_the_encodings_of_its_own_job_one_for_each_candidate(
    changes: dict[str, Any], problem: str
) -> None:
    encode, encodings = varied()
    fields = json.loads(encode.next(encodings, "an armchair")[0].to_json())
    with pytest.raises(MalformedMessageError, match=problem):
        parse(json.dumps({**fields, **changes}))


def test_messages_that_follow_from_version_1_are_version_1() -> None:
    encode = parse((OLD_MESSAGES / "1.EncodeTask.json").read_text(encoding="utf-8"), now=0)
    assert isinstance(encode, EncodeTask)
    # There, the keys of objects do not depend on their content.
    encoding, tokens, picture = (
        ObjectRef(key=key, sha256=SHA)
        for key in (encode.keys.encoding, encode.keys.tokens(0), encode.keys.candidate(0))
    )
    generate = encode.next(encoding, "an armchair")[0]
    decode = generate.next(tokens)
    rank = decode.next((picture, picture.model_copy(update={"key": encode.keys.candidate(1)})))
    assert rank.tokens is None
    for message in (generate, decode, rank, decode.from_the_start(), decode.done(), rank.done()):
        assert message.version == 1
        assert "effective_prompt" not in message.to_json()
    with pytest.raises(MalformedMessageError, match="effective_prompt needs version 2"):
        parse(json.dumps({**json.loads(decode.to_json()), "effective_prompt": "an armchair"}))


def test_events_name_their_work() -> None:
    encode, generate, decode, _, _, done, progress, failed = one_of_each()
    assert isinstance(done, StageDone)
    assert isinstance(progress, Progress)
    assert isinstance(failed, Failed)
    for event, task in ((done, encode), (progress, generate), (failed, decode)):
        assert (event.job, event.lease, event.attempt) == (task.job, task.lease, task.attempt)
        assert (event.stage, event.chunk) == (task.stage_queue, getattr(task, "chunk", None))
        assert event.queue == "smalti.events"
    assert encode.done(ref(encode.keys.encoding)).chunk is None


def test_chunk_can_be_made_again_from_the_prompt() -> None:
    for task in one_of_each()[1:4]:
        again = task.from_the_start()
        assert again.chunks == (Chunk(chunk=0, candidates=(0, 1)),)
        assert again.attempt == task.attempt + 1
        assert (again.prompt, again.seed, again.lease) == (task.prompt, task.seed, task.lease)


def test_messages_for_the_same_work_have_the_same_key() -> None:
    for message in one_of_each()[:4]:
        assert message.work_key == message.next_attempt().work_key
        assert message.next_attempt().attempt == message.attempt + 1
    works = [message.work_key for message in one_of_each()]
    assert len(set(works)) == len(works)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"version": 0}, "version: must be a positive integer"),
        ({"version": True}, "version: must be a positive integer"),
        ({"version": "1"}, "version: must be a positive integer"),
        ({"kind": "paint"}, "does not match any of the expected tags"),
        ({"kind": "decode"}, "decode.chunk"),
        ({"job": "../7f3a"}, "encode.job"),
        ({"job": "a/b"}, "encode.job"),
        ({"job": ""}, "encode.job"),
        ({"seed": "3"}, "encode.seed"),
        ({"seed": -1}, "encode.seed"),
        ({"prompt": ""}, "encode.prompt"),
        ({"prompt": "a" * 4001}, "encode.prompt"),
        ({"expires": None}, "encode.expires"),
        ({"priority": "now"}, "encode.priority"),
        ({"attempt": 0}, "encode.attempt"),
        ({"chunks": []}, "encode.chunks"),
        ({"chunks": [{"chunk": 0, "candidates": [0, 0]}]}, "occurs twice"),
        ({"chunks": [{"chunk": 0, "candidates": [0]}, {"chunk": 0, "candidates": [1]}]}, "occurs twice"),
        ({"sampling": {"top_p": 2.0}}, "encode.sampling.top_p"),
        ({"colour": "red"}, "encode.colour"),
    ],
)
def test_malformed_message_is_refused_with_its_field(changes: dict[str, Any], problem: str) -> None:
    text = json.dumps({**json.loads(encode_task().to_json()), **changes})
    with pytest.raises(MalformedMessageError, match=problem):
        parse(text)


@pytest.mark.parametrize("text", ["", "{", "null", "[]", '"a"', "{}", b"\xff\xfe", "[" * 60_000])
def test_text_that_is_not_a_message_is_refused(text: str | bytes) -> None:
    with pytest.raises(MalformedMessageError):
        parse(text)


@given(st.text() | st.binary())
def test_noise_raises_only_message_errors(text: str | bytes) -> None:
    with pytest.raises(MessageError):
        parse(text)


def test_references_to_other_jobs_are_refused() -> None:
    _, generate, decode, rank, done, *_ = one_of_each()
    for message, own, others in (
        (generate, "jobs/7f3a/encoding", "jobs/7f3b/encoding"),
        (decode, "tokens/0-0123", "tokens/1-0123"),
        (rank, "candidates/0-0123", "candidates/2-0123"),
        (rank, "jobs/7f3a/candidates", "jobs/7f3a/../x"),
        (done, "jobs/7f3a/encoding", "jobs/7f3b/encoding"),
    ):
        text = message.to_json()
        assert own in text
        with pytest.raises(MalformedMessageError):
            parse(text.replace(own, others))


def test_newer_version_is_not_malformed() -> None:
    with pytest.raises(UnknownVersionError) as caught:
        parse(json.dumps({"version": VERSION + 1, "whatever": ["it", "has"]}))
    assert caught.value.version == VERSION + 1


def test_oversized_message_is_not_parsed() -> None:
    with pytest.raises(OversizedMessageError):
        parse(" " * (MAX_MESSAGE_BYTES + 1))


@pytest.mark.parametrize("letter", ["\N{GRINNING FACE}", "\x01"])
def test_largest_task_fits_into_a_message(letter: str) -> None:
    chunks = tuple(Chunk(chunk=number, candidates=(2**20 - 1 - number,)) for number in range(MAX_CHUNKS))
    largest = encode_task(prompt=letter * 4000, chunks=chunks, given=(16383,) * MAX_GIVEN_TOKENS)
    assert parse(largest.to_json()) == largest
    # A rewritten prompt has at most 64 words.
    generate = largest.next(ref(largest.keys.encoding), "armadillo " * 64)[0]
    assert parse(generate.to_json()) == generate


def test_tasks_expire_and_events_do_not() -> None:
    encode, *_, done, _, _ = one_of_each()
    with pytest.raises(ExpiredMessageError) as caught:
        parse(encode.to_json(), now=LATER + MAX_CLOCK_SKEW_SECONDS)
    assert caught.value.message == encode
    assert parse(encode.to_json(), now=LATER + MAX_CLOCK_SKEW_SECONDS - 0.1) == encode
    assert parse(done.to_json(), now=LATER + 2 * MAX_CLOCK_SKEW_SECONDS) == done
    with pytest.raises(ExpiredMessageError):
        parse(encode_task(expires=time.time() - MAX_CLOCK_SKEW_SECONDS - 1).to_json())


@pytest.mark.parametrize("path", sorted(OLD_MESSAGES.glob("*.json")), ids=lambda path: path.stem)
def test_old_message_is_still_read(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    message = parse_hello(text) if "Hello" in path.stem else parse(text, now=0)
    assert type(message).__name__ == path.stem.partition(".")[2].partition("-")[0]
    # Every field is read, and fields with defaults are written.
    assert json.loads(message.to_json()) == json.loads(text)


def test_there_is_an_old_message_of_every_kind() -> None:
    kinds = {type(message).__name__ for message in one_of_each()}
    for version in range(1, VERSION + 1):
        stored = {path.stem.partition(".")[2] for path in OLD_MESSAGES.glob(f"{version}.*.json")}
        shards = {f"{stage}ShardTask" for stage in ("Encode", "Generate", "Decode", "Rank", "Refine")}
        shards |= {"ShardProgress", "StageDone-shard"}
        since_then = {1: kinds - {"RefineTask"}, 2: kinds, 3: kinds | {"Hello"} | shards}
        assert stored == since_then[version]


def test_positions_without_a_given_token_and_strength_need_version_2() -> None:
    scattered = encode_task(given=(5, FREE, 9))
    varied_picture = encode_task(given=(5, 0, 9), strength=0.25)
    for task in (scattered, varied_picture):
        [generate, _] = task.next(ref(task.keys.encoding), task.prompt)
        assert parse(generate.to_json()) == generate
        assert (generate.given, generate.strength) == (task.given, task.strength)
        old = {**json.loads(task.to_json()), "version": 1}
        with pytest.raises(MalformedMessageError, match="needs version 2"):
            parse(json.dumps(old))
    for wrong in ({"given": (FREE - 1,)}, {"strength": 1.0}, {"strength": 0.25, "given": (5, FREE)}):
        with pytest.raises(MalformedMessageError):
            parse(json.dumps({**json.loads(encode_task().to_json()), **wrong}))
    assert "strength" not in encode_task().to_json()
