"""Services whose engine does no work: `python -m benchmarks.idle encoder`. Everything else is the real service.

They read the same objects as the real stage and write the same number of objects, with constant content.
"""

import os
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from PIL import Image

from smalti.engines.encoding import Encoding
from smalti.messages import DecodeTask, EncodeTask, GenerateTask, Message, PromptReading, RankTask, Stage
from smalti.pictures import plain_png_bytes
from smalti.registry import library
from smalti.registry.spec import ModelSpec
from smalti.results import RankedPicture, ScoresFile
from smalti.service import Process, Service, run
from smalti.service.cancellation import Cancellations
from smalti.service.objects import encoding_bytes, load_encoding, load_tokens, tokens_bytes
from smalti.service.stage import StageHandler, StageOutput, TaskContext
from smalti.storage import ObjectRef

PROGRESS: Final = "BENCHMARK_PROGRESS"
"""Variable with the number of progress events that the idle generator sends of each chunk; none by default."""
PROGRESS_SECONDS: Final = 0.25
"""Time before each of them, and somewhat more than a generator leaves between two."""
CONCURRENCY: Final = {"encoder": 4, "generator": 6, "decoder": 2, "ranker": 4}
"""Concurrent messages, as in the real services."""


class IdleEncode(StageHandler[EncodeTask, None]):
    """Writes an encoding of zeros."""

    stage = Stage.ENCODE

    def __init__(self, process: Process, spec: ModelSpec, cancellations: Cancellations) -> None:
        """Prepares the encoding."""
        super().__init__(process=process, folder=spec.folder, cancellations=cancellations)
        config = spec.transformer
        states = np.zeros((config.max_text_length, config.d_model), np.float32)
        self._content = encoding_bytes(Encoding(states, np.ones(config.max_text_length, np.int32)))

    def output_names(self, task: EncodeTask) -> tuple[str, ...]:  # noqa: D102
        return (task.keys.encoding,)

    def load(self, task: EncodeTask) -> None:
        """Loads nothing."""

    def run(self, context: TaskContext[EncodeTask], inputs: None) -> StageOutput:  # noqa: D102
        return StageOutput((self.write(context.task, context.task.keys.encoding, self._content),), 0.0)

    def next_tasks(  # noqa: D102
        self, context: TaskContext[EncodeTask], objects: tuple[ObjectRef, ...]
    ) -> tuple[Message, ...]:
        return context.task.next(objects[0], context.task.prompt)

    def read_prompt(self, task: EncodeTask) -> PromptReading:  # noqa: D102
        return PromptReading(effective_prompt=task.prompt, cut=False)


class IdleGenerate(StageHandler[GenerateTask, Encoding]):
    """Writes tokens that are all zero."""

    stage = Stage.GENERATE

    def __init__(self, process: Process, spec: ModelSpec, cancellations: Cancellations) -> None:
        """Keeps the sizes of the model."""
        super().__init__(process=process, folder=spec.folder, cancellations=cancellations)
        self._sizes = spec
        self._events = int(os.environ.get(PROGRESS, "0"))

    def output_names(self, task: GenerateTask) -> tuple[str, ...]:  # noqa: D102
        return (task.keys.tokens(task.chunk),)

    def load(self, task: GenerateTask) -> Encoding:  # noqa: D102
        return load_encoding(self.store, task.encoding_refs[0], self._sizes)

    def run(self, context: TaskContext[GenerateTask], inputs: Encoding) -> StageOutput:  # noqa: D102
        task = context.task
        row = tuple((0,) * self._sizes.side for _ in task.candidates)
        for rows in range(1, self._events + 1):
            time.sleep(PROGRESS_SECONDS)
            self.publisher.offer(task.progress(min(rows, self._sizes.side), self._sizes.side, row))
        tokens = np.zeros((len(task.candidates), self._sizes.tokens), np.int32)
        return StageOutput((self.write(task, task.keys.tokens(task.chunk), tokens_bytes(tokens)),), 0.0)

    def next_tasks(  # noqa: D102
        self, context: TaskContext[GenerateTask], objects: tuple[ObjectRef, ...]
    ) -> tuple[Message, ...]:
        return (context.task.next(objects[0]),)


class IdleDecode(StageHandler[DecodeTask, np.ndarray]):
    """Writes black pictures."""

    stage = Stage.DECODE

    def __init__(self, process: Process, spec: ModelSpec, cancellations: Cancellations) -> None:
        """Prepares the picture."""
        super().__init__(process=process, folder=spec.folder, cancellations=cancellations)
        self._sizes = spec
        self._content = plain_png_bytes(Image.new("RGB", (spec.resolution, spec.resolution)))

    def output_names(self, task: DecodeTask) -> tuple[str, ...]:  # noqa: D102
        return tuple(task.keys.candidate(index) for index in task.candidates)

    def load(self, task: DecodeTask) -> np.ndarray:  # noqa: D102
        return load_tokens(self.store, task.tokens, len(task.candidates), self._sizes)

    def run(self, context: TaskContext[DecodeTask], inputs: np.ndarray) -> StageOutput:  # noqa: D102
        task = context.task
        written = self.store_executor.map(
            lambda name: self.write(task, name, self._content), self.output_names(task)
        )
        return StageOutput(tuple(written), 0.0)

    def next_tasks(  # noqa: D102
        self, context: TaskContext[DecodeTask], objects: tuple[ObjectRef, ...]
    ) -> tuple[Message, ...]:
        return (context.task.next(objects),)


class IdleRank(StageHandler[RankTask, list[bytes]]):
    """Uses the index of each candidate as its score."""

    stage = Stage.RANK

    def __init__(self, process: Process, spec: ModelSpec, cancellations: Cancellations) -> None:
        """Keeps the size of the pictures."""
        super().__init__(process=process, folder=spec.folder, cancellations=cancellations)
        self._side = spec.resolution

    def output_names(self, task: RankTask) -> tuple[str, ...]:  # noqa: D102
        return (task.keys.scores(task.chunk),)

    def load(self, task: RankTask) -> list[bytes]:  # noqa: D102
        return self.store_executor.map(lambda ref: self.store.get(ref.key, sha256=ref.sha256), task.pictures)

    def run(self, context: TaskContext[RankTask], inputs: list[bytes]) -> StageOutput:  # noqa: D102
        task = context.task
        scored = tuple(
            RankedPicture(
                index=index,
                score=index,
                sha256=ref.sha256,
                size=len(file),
                width=self._side,
                height=self._side,
            )
            for index, ref, file in zip(task.candidates, task.pictures, inputs, strict=True)
        )
        scores = ScoresFile(pictures=scored).to_bytes()
        return StageOutput((self.write(task, task.keys.scores(task.chunk), scores),), 0.0)

    def next_tasks(  # noqa: D102
        self, context: TaskContext[RankTask], objects: tuple[ObjectRef, ...]
    ) -> tuple[Message, ...]:
        return ()


STAGES: Final[
    dict[str, tuple[Stage, Callable[[Process, ModelSpec, Cancellations], StageHandler[Any, Any]]]]
] = {
    "encoder": (Stage.ENCODE, IdleEncode),
    "generator": (Stage.GENERATE, IdleGenerate),
    "decoder": (Stage.DECODE, IdleDecode),
    "ranker": (Stage.RANK, IdleRank),
}


def main(name: str) -> int:
    """Runs an idle service until it is stopped; returns the exit code."""
    stage, kind = STAGES[name]

    def build(process: Process) -> Service:
        spec = ModelSpec.load(library.find())
        cancellations = Cancellations(process.store, process.settings.cancel_poll)
        handler = kind(process, spec, cancellations)
        return Service(
            register=lambda server: None,
            handler=handler,
            concurrency=CONCURRENCY[name],
            close=handler.close,
        )

    return run(name, stage, build)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
