"""The stage that turns image tokens into pictures: `jobs/<job>/candidates/<index>-<content>.png`."""

import numpy as np
from jaxtyping import Int, UInt8

from smalti.engines.decoder import DecoderEngine
from smalti.messages import DecodeTask, Message, Stage
from smalti.registry.spec import ModelSpec
from smalti.service import Process
from smalti.service.cancellation import Cancellations
from smalti.service.compute import ComputeThread
from smalti.service.objects import load_tokens
from smalti.service.prompts import effective_prompt, wordings_of
from smalti.service.stage import StageHandler, StageOutput, TaskContext
from smalti.shards.decoding import candidate_file
from smalti.storage import ObjectRef
from smalti.text.rewording import Rewriter


class DecodeHandler(StageHandler[DecodeTask, Int[np.ndarray, "pictures tokens"]]):
    """Decodes the pictures of a chunk."""

    stage = Stage.DECODE

    def __init__(
        self,
        *,
        process: Process,
        spec: ModelSpec,
        cancellations: Cancellations,
        engine: DecoderEngine,
        compute: ComputeThread,
        rewriter: Rewriter,
    ) -> None:
        """Adds the decoder to what every stage needs.

        Args:
            process: provides the store, the publisher and the settings.
            spec: the loaded model and its sizes.
            cancellations: tells which jobs were cancelled; closed with the handler.
            engine: the decoder.
            compute: the thread in which the decoder runs.
            rewriter: rewrites the prompt of a task of version 1, which does not carry the effective prompt.
        """
        super().__init__(process=process, folder=spec.folder, cancellations=cancellations)
        self._spec = spec
        self._engine = engine
        self._compute = compute
        self._rewriter = rewriter

    def output_names(self, task: DecodeTask) -> tuple[str, ...]:  # noqa: D102
        return tuple(task.keys.candidate(index) for index in task.candidates)

    def load(self, task: DecodeTask) -> Int[np.ndarray, "pictures tokens"]:  # noqa: D102
        return load_tokens(self.store, task.tokens, len(task.candidates), self._spec)

    def run(
        self, context: TaskContext[DecodeTask], inputs: Int[np.ndarray, "pictures tokens"]
    ) -> StageOutput:
        """Decodes the pictures in batches, and writes each batch while the next one is decoded."""
        task = context.task
        context.reach("after-read")
        context.check_begin()
        prompt = effective_prompt(task, self._rewriter)
        wordings = wordings_of(task, prompt, self._rewriter)

        def write(position: int, pixels: UInt8[np.ndarray, "height width 3"]) -> ObjectRef:
            return self._write(task, prompt, wordings[position], task.candidates[position], pixels)

        return self.run_in_batches(
            context,
            self._compute,
            pictures=len(inputs),
            batch_size=self._engine.batch_size,
            run=lambda batch: self._engine.decode(inputs[batch]),
            write=write,
        )

    def next_tasks(  # noqa: D102
        self, context: TaskContext[DecodeTask], objects: tuple[ObjectRef, ...]
    ) -> tuple[Message, ...]:
        return (context.task.next(objects),)

    def _write(
        self,
        task: DecodeTask,
        prompt: str,
        wording: str | None,
        index: int,
        pixels: UInt8[np.ndarray, "height width 3"],
    ) -> ObjectRef:
        """Writes the PNG of a candidate with its record; the record has no score yet.

        Args:
            task: the task.
            prompt: the effective prompt.
            wording: what was encoded for the candidate; None if it has no wording of its own.
            index: the candidate's index in the job.
            pixels: the picture.
        """
        content = candidate_file(
            pixels,
            prompt=task.prompt,
            effective_prompt=prompt,
            wording=wording,
            seed=task.seed,
            sampling=task.sampling,
            candidates=task.candidates_in_job,
            candidate=index,
            vary=task.vary,
            model=task.model,
            revision=task.revision,
        )
        return self.write(task, task.keys.candidate(index), content, content_type="image/png")
