"""Messages between this version and the last release: each reads what the other writes by default.

The release runs in child processes, with the code of its tree.
"""

import inspect
import json
import time
from pathlib import Path
from typing import Any

import pytest

from harness.paths import SAMPLES
from harness.releases import run_release
from smalti.messages import Message, Stage, message_settings, parse

pytestmark = pytest.mark.process

KINDS = {
    "EncodeTask",
    "GenerateTask",
    "DecodeTask",
    "RankTask",
    "RefineTask",
    "StageDone",
    "Progress",
    "Failed",
}
PARSE = """
import json, sys
from smalti.errors import MessageError
from smalti.messages import parse
def read(text):
    try:
        message = parse(text)
    except MessageError as error:
        return type(error).__name__
    return [type(message).__name__, json.loads(message.to_json()), message.queue]
print(json.dumps([read(text) for text in json.load(sys.stdin)]))
"""


def messages_of_jobs(folder: str, now: float) -> list[str]:
    """Returns the messages of jobs of several kinds; it runs in both versions, so it must be whole in itself."""
    from pathlib import Path

    from harness.gateway import GatewayHarness, sqlite_database
    from smalti.messages import FailureReason
    from smalti.parameters import Priority, Refinement, SecondPass
    from smalti.registry.spec import ModelSpec
    from smalti.testing.model import tiny_model

    spec = ModelSpec.load(tiny_model(Path(folder) / "model", seed=3, with_refiner=True))
    gateway = GatewayHarness(sqlite_database(Path(folder)), spec, refiner=True)
    gateway.clock.advance(now - gateway.clock())
    side, found = spec.side, []
    gateway.create("a plain cat")
    gateway.create("a varied cat", vary=True, diversity=0.5, priority=Priority.BATCH)
    gateway.create("a finer cat", second_pass=SecondPass(upscale=2, refine=Refinement()))
    gateway.create("a cat below a sky", given=tuple(range(side)))
    for encode in gateway.send():
        generates, encoded = gateway.stages.encode(encode)
        gateway.handle(encoded)
        found += [encode, *generates, encoded, encode.failed(FailureReason.INVALID, "prompt: no")]
        for generate in generates:
            drawn = gateway.stages.draw_rows(generate, 2)
            decode, generated = gateway.stages.generate(generate)
            rank, decoded = gateway.stages.decode(decode)
            ranked = gateway.stages.rank(rank)
            gateway.handle(drawn, generated, decoded, ranked)
            found += [
                drawn,
                decode,
                generated,
                rank,
                decoded,
                ranked,
                rank.from_the_start(),
            ]
    for refine in gateway.send_refining():
        found += [refine, gateway.stages.refine(refine)]
    gateway.close()
    return [message.to_json() for message in found]


def summary(message: Message) -> list[Any]:
    return [type(message).__name__, json.loads(message.to_json()), message.queue]


def test_release_reads_what_is_written_by_default(tmp_path: Path) -> None:
    texts = messages_of_jobs(str(tmp_path), time.time())
    written = [summary(parse(text)) for text in texts]
    assert {kind for kind, *_ in written} == KINDS
    assert {fields["version"] for _, fields, _ in written} == {message_settings().write} == {2}
    assert run_release(PARSE, text=json.dumps(texts)) == written


def test_what_the_release_writes_is_read(tmp_path: Path) -> None:
    code = f"import json\n{inspect.getsource(messages_of_jobs)}\nprint(json.dumps(messages_of_jobs({str(tmp_path)!r}, "
    texts = run_release(f"{code}{time.time()})))")
    read = [summary(parse(text)) for text in texts]
    assert {kind for kind, *_ in read} == KINDS
    assert read == run_release(PARSE, text=json.dumps(texts))


def test_release_keeps_what_it_cannot_read_for_others() -> None:
    texts = {
        path.stem: path.read_text()
        for path in (SAMPLES / "messages").glob("*.json")
        if "Hello" not in path.stem
    }
    assert {name.partition(".")[0] for name in texts} == {"1", "2", "3"}
    for name, answer in zip(texts, run_release(PARSE, text=json.dumps(list(texts.values()))), strict=True):
        if name.startswith("3"):
            assert answer == "UnknownVersionError"
        else:
            assert answer == summary(parse(texts[name]))
            assert answer[2].startswith(tuple(f"smalti.{stage}" for stage in Stage))
