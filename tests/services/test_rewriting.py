"""The encoder rewrites the prompt once for a job, and the other stages use its result."""

import io
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from PIL import Image

from harness.queue import task
from harness.service import bare_process
from smalti.engines.generator.engine import GeneratorEngine
from smalti.messages import Chunk, EncodeTask, Event, Message, Stage, StageDone, parse
from smalti.pipeline import Pipeline
from smalti.queue import Delivery
from smalti.registry.folder import ModelFolder
from smalti.registry.spec import ModelSpec
from smalti.service.cancellation import Cancellations
from smalti.service.compute import ComputeThread
from smalti.service.stage import StageHandler
from smalti.services.decoder.handler import DecodeHandler
from smalti.services.encoder.handler import EncodeHandler
from smalti.services.generator.handler import GenerateHandler
from smalti.services.ranker.handler import RankHandler
from smalti.storage import MemoryStore
from smalti.text.rewording import Rewording, Rewriter

PROMPT = "a red zeppelin"
CHUNKS = tuple(Chunk(chunk=chunk, candidates=tuple(range(4 * chunk, 4 * chunk + 4))) for chunk in range(4))


class CountingRewriter(Rewriter):
    """Records the prompts that it rewrites."""

    def __init__(self, words: Any) -> None:
        super().__init__(words)
        self.prompts: list[str] = []

    def __call__(self, prompt: str) -> Rewording:
        self.prompts.append(prompt)
        return super().__call__(prompt)


class Stages:
    """The handlers of the four stages around one store, without a broker."""

    def __init__(
        self, *, folder: ModelFolder, pipeline: Pipeline, generator: GeneratorEngine, compute: ComputeThread
    ) -> None:
        self.store = MemoryStore()
        self.words_file = folder.words_file
        self.rewriter = CountingRewriter.load(folder.words_file)
        process, spec = bare_process(self.store), ModelSpec.load(folder)

        def common() -> dict[str, Any]:
            return {"process": process, "cancellations": Cancellations(self.store, 1.0)}

        computing: dict[str, Any] = {"compute": compute, "rewriter": self.rewriter}
        self.handlers: dict[Stage, StageHandler[Any, Any]] = {
            Stage.ENCODE: EncodeHandler(folder=folder, engine=pipeline.encoder, **common(), **computing),
            Stage.GENERATE: GenerateHandler(spec=spec, engine=generator, **common()),
            Stage.DECODE: DecodeHandler(spec=spec, engine=pipeline.decoder, **common(), **computing),
            Stage.RANK: RankHandler(folder=folder, engine=pipeline.ranker, **common(), **computing),
        }

    def run(self, first: EncodeTask) -> list[Event]:
        """Handles a task and all tasks that follow from it; returns the events."""
        waiting: deque[Message] = deque([first])
        events: list[Event] = []
        while waiting:
            message = waiting.popleft()
            if isinstance(message, Event):
                events.append(message)
                continue
            # Serialized, as a worker in another process receives it.
            received = parse(message.to_json())
            waiting += self.handlers[message.stage_queue](Delivery(received, threading.Event()))
        return events

    def objects(self, job: str) -> dict[str, bytes]:
        """Returns the objects of a job by their names in its folder."""
        folder = f"jobs/{job}/"
        return {
            info.key.removeprefix(folder): self.store.get(info.key) for info in self.store.objects(folder)
        }

    def close(self) -> None:
        for handler in self.handlers.values():
            handler.close()


@pytest.fixture(scope="module")
def stages(worded: ModelFolder, pipeline: Pipeline) -> Iterator[Stages]:
    with ExitStack() as stack:
        generator = GeneratorEngine.load(
            ModelSpec.load(worded),
            pipeline.encoder.unconditional,
            slots=16,
            max_waiting=16,
            stall_seconds=60.0,
        )
        stack.callback(generator.close)
        generator.start()
        assert generator.ready.wait(120)
        compute = ComputeThread(max_permits=4, stall_seconds=60)
        stack.callback(compute.close)
        made = Stages(folder=worded, pipeline=pipeline, generator=generator, compute=compute)
        stack.callback(made.close)
        yield made


@pytest.fixture
def asked(worded: ModelFolder, stages: Stages) -> EncodeTask:
    """A job of 16 candidates in four chunks; its prompt has a word that the model does not know."""
    stages.rewriter.prompts.clear()
    return task("rewritten", PROMPT, model=worded, chunks=CHUNKS)


def test_prompt_is_rewritten_once_for_a_job(stages: Stages, asked: EncodeTask) -> None:
    events = stages.run(asked)
    assert len([event for event in events if isinstance(event, StageDone)]) == 1 + 3 * len(CHUNKS)
    assert stages.rewriter.prompts == [PROMPT]
    [reading] = [event.reading for event in events if isinstance(event, StageDone) and event.reading]
    assert reading.unknown == ("zeppelin",)
    assert reading.effective_prompt == Rewriter.load(stages.words_file)(PROMPT).prompt
    for index in range(16):
        with Image.open(io.BytesIO(stages.objects("rewritten")[f"candidates/{index}.png"])) as image:
            assert f'"drawn": "{reading.effective_prompt}"' in image.info["smalti"]
    # The existing objects do not contain the reading of the prompt, so the encoder rewrites it again.
    again = stages.run(asked)
    assert all(event.skipped for event in again if isinstance(event, StageDone))
    assert [event.reading for event in again if isinstance(event, StageDone) and event.reading] == [reading]
    assert stages.rewriter.prompts == [PROMPT] * 2


def test_tasks_of_version_1_write_the_same_objects(stages: Stages, asked: EncodeTask) -> None:
    stages.run(asked)
    stages.rewriter.prompts.clear()
    old = asked.model_copy(update={"version": 1, "job": "old"})
    assert {event.version for event in stages.run(old)} == {1}
    assert stages.objects("old") == stages.objects("rewritten")
    # Once in the encoder, and once for each chunk in the decoder and the ranker.
    assert stages.rewriter.prompts == [PROMPT] * (1 + 2 * len(CHUNKS))
