"""The stage that encodes prompts: `jobs/<job>/encoding.safetensors`."""

import time

from smalti.engines.encoder import EncoderEngine
from smalti.messages import (
    MAX_NOTICE_LENGTH,
    MAX_WORD_LENGTH,
    MAX_WORDS,
    EncodeTask,
    Message,
    PromptReading,
    Stage,
)
from smalti.registry.folder import ModelFolder
from smalti.service import Process
from smalti.service.cancellation import Cancellations
from smalti.service.compute import ComputeThread
from smalti.service.objects import encoding_bytes
from smalti.service.stage import StageHandler, StageOutput, TaskContext
from smalti.storage import ObjectRef
from smalti.text.rewording import Rewriter


class EncodeHandler(StageHandler[EncodeTask, None]):
    """Rewrites the prompt, encodes it, and has the chunks generated."""

    stage = Stage.ENCODE

    def __init__(
        self,
        *,
        process: Process,
        folder: ModelFolder,
        cancellations: Cancellations,
        engine: EncoderEngine,
        compute: ComputeThread,
        rewriter: Rewriter,
    ) -> None:
        """Adds the encoder to what every stage needs.

        Args:
            process: provides the store, the publisher and the settings.
            folder: the loaded model.
            cancellations: tells which jobs were cancelled; closed with the handler.
            engine: the encoder.
            compute: the thread in which the encoder runs.
            rewriter: rewrites prompts in words that the model knows.
        """
        super().__init__(process=process, folder=folder, cancellations=cancellations)
        self._engine = engine
        self._compute = compute
        self._rewriter = rewriter

    def output_keys(self, task: EncodeTask) -> tuple[str, ...]:  # noqa: D102
        return (task.keys.encoding,)

    def read_prompt(self, task: EncodeTask) -> PromptReading:
        """Rewrites the prompt; also needed if the encoding is already there, which does not hold the words."""
        rewording = self._rewriter(task.prompt)
        return PromptReading(
            effective_prompt=rewording.prompt,
            cut=self._engine.is_cut(rewording.prompt),
            unknown=_shortened(rewording.unknown),
            left_out=_shortened(rewording.left_out),
            notice=rewording.notice[:MAX_NOTICE_LENGTH],
        )

    def load(self, task: EncodeTask) -> None:
        """Loads nothing: the task holds all that the encoder needs."""

    def run(self, context: TaskContext[EncodeTask], inputs: None) -> StageOutput:  # noqa: D102
        task, prompt = context.task, _reading(context).effective_prompt
        context.reach("after-read")

        def encode() -> tuple[bytes, float]:
            context.check_begin()
            context.reach("engine-step")
            began = time.monotonic()
            encoding = self._engine.encode(prompt)
            return encoding_bytes(encoding), time.monotonic() - began

        content, seconds = self._compute.run(encode)
        context.check()
        context.reach("before-write")
        return StageOutput((self.store.put(task.keys.encoding, content),), seconds)

    def next_tasks(  # noqa: D102
        self, context: TaskContext[EncodeTask], objects: tuple[ObjectRef, ...]
    ) -> tuple[Message, ...]:
        return context.task.next(objects[0], _reading(context).effective_prompt)


def _reading(context: TaskContext[EncodeTask]) -> PromptReading:
    assert context.reading is not None  # This stage reads the prompt.
    return context.reading


def _shortened(words: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(word[:MAX_WORD_LENGTH] for word in words[:MAX_WORDS])
