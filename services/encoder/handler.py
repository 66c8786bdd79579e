"""The stage that encodes prompts: `jobs/<job>/encoding-<content>.safetensors`, or an object for each wording."""

import time
from collections.abc import Iterable, Mapping

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

    def output_names(self, task: EncodeTask) -> tuple[str, ...]:  # noqa: D102
        if not task.vary:
            return (task.keys.encoding,)
        return tuple(self._prompts(task, self._rewriter(task.prompt).prompt))

    def records(self, task: EncodeTask) -> Mapping[str, tuple[str, ...]]:
        """Returns a record for each encoding, since tasks for other chunks of the job share some of them."""
        return {task.keys.outputs(self.stage, name): (name,) for name in self.output_names(task)}

    def read_prompt(self, task: EncodeTask) -> PromptReading:
        """Rewrites the prompt; also needed if the encoding is already there, which does not hold the words."""
        rewording = self._rewriter(task.prompt)
        return PromptReading(
            effective_prompt=rewording.prompt,
            cut=self._engine.is_cut(rewording.prompt),
            unknown=_shortened(rewording.unknown),
            left_out=_shortened(rewording.left_out),
            notice=rewording.notice[:MAX_NOTICE_LENGTH],
            text_tokens=self._engine.count_tokens(rewording.prompt),
        )

    def load(self, task: EncodeTask) -> None:
        """Loads nothing: the task holds all that the encoder needs."""

    def run(self, context: TaskContext[EncodeTask], inputs: None) -> StageOutput:  # noqa: D102
        prompts = self._prompts(context.task, _reading(context).effective_prompt)
        context.reach("after-read")

        def encode() -> tuple[dict[str, bytes], float]:
            context.check_begin()
            context.reach("engine-step")
            began = time.monotonic()
            encoded = {name: encoding_bytes(self._engine.encode(prompt)) for name, prompt in prompts.items()}
            return encoded, time.monotonic() - began

        encoded, seconds = self._compute.run(encode)
        context.check()
        context.reach("before-write")
        written = self.store_executor.map(lambda each: self.write(context.task, *each), encoded.items())
        return StageOutput(tuple(written), seconds)

    def next_tasks(  # noqa: D102
        self, context: TaskContext[EncodeTask], objects: tuple[ObjectRef, ...]
    ) -> tuple[Message, ...]:
        task, prompt = context.task, _reading(context).effective_prompt
        if not task.vary:
            return task.next(objects[0], prompt)
        refs = {ref.name: ref for ref in objects}
        wordings = self._wordings(task, prompt)
        return task.next(
            {candidate: refs[task.keys.encoding_of(wording)] for candidate, wording in wordings}, prompt
        )

    def _prompts(self, task: EncodeTask, effective_prompt: str) -> dict[str, str]:
        """Returns what is encoded for a task, by the name of the encoding; equal wordings are encoded once."""
        if not task.vary:
            return {task.keys.encoding: effective_prompt}
        return {
            task.keys.encoding_of(wording): wording for _, wording in self._wordings(task, effective_prompt)
        }

    def _wordings(self, task: EncodeTask, effective_prompt: str) -> Iterable[tuple[int, str]]:
        """Returns the candidates of a task with their wordings."""
        candidates = [candidate for chunk in task.chunks for candidate in chunk.candidates]
        wordings = self._rewriter.wordings(effective_prompt, task.seed, candidates)
        return zip(candidates, wordings, strict=True)


def _reading(context: TaskContext[EncodeTask]) -> PromptReading:
    assert context.reading is not None  # This stage reads the prompt.
    return context.reading


def _shortened(words: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(word[:MAX_WORD_LENGTH] for word in words[:MAX_WORDS])
