"""The stage that turns image tokens into pictures: `jobs/<job>/candidates/<index>.png`."""

import time
from concurrent.futures import Future, wait
from functools import partial

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from smalti.engines.decoder import DecoderEngine
from smalti.messages import DecodeTask, Message, Stage
from smalti.pictures import Drawing, png_bytes
from smalti.registry.spec import ModelSpec
from smalti.service.cancellation import Cancellations
from smalti.service.compute import ComputeThread
from smalti.service.objects import read_tokens
from smalti.service.process import Process
from smalti.service.stage import StageHandler, StageOutput, TaskContext
from smalti.storage import ObjectRef
from smalti.text.rewording import Rewriter


class DecodeHandler(StageHandler[DecodeTask, Int[np.ndarray, "pictures tokens"]]):
    """Decodes the pictures of a chunk."""

    stage = Stage.DECODE

    def __init__(
        self,
        process: Process,
        spec: ModelSpec,
        cancellations: Cancellations,
        engine: DecoderEngine,
        compute: ComputeThread,
        rewriter: Rewriter,
    ) -> None:
        """Takes the engine, the thread that it computes in, and what says prompts in the model's words."""
        super().__init__(process, spec.folder, cancellations)
        self._spec = spec
        self._engine = engine
        self._compute = compute
        self._rewriter = rewriter

    def outputs(self, task: DecodeTask) -> tuple[str, ...]:
        """See `StageHandler`."""
        return tuple(task.keys.candidate(index) for index in task.candidates)

    def read(self, task: DecodeTask) -> Int[np.ndarray, "pictures tokens"]:
        """See `StageHandler`."""
        return read_tokens(self.store, task.tokens, len(task.candidates), self._spec)

    def make(
        self, running: TaskContext[DecodeTask], content: Int[np.ndarray, "pictures tokens"]
    ) -> StageOutput:
        """See `StageHandler`; pictures are written while the next ones are decoded."""
        task = running.task
        running.reach("after-read")
        running.check_begin()
        seconds = 0.0
        written: list[Future[ObjectRef]] = []
        # As many at a time as one run of the program takes: between them others have their turn.
        step = self._engine.batch_size
        try:
            for start in range(0, len(content), step):
                pictures, took = self._decode(running, content[start : start + step])
                seconds += took
                running.check()
                running.reach("before-write")
                for index, pixels in zip(task.candidates[start : start + step], pictures, strict=True):
                    written.append(self.side_by_side.submit(partial(self._write, task, index, pixels)))
            return StageOutput(tuple(each.result() for each in written), seconds)
        finally:
            wait(written)  # Nothing is written for work that was left.

    def follow(self, task: DecodeTask, objects: tuple[ObjectRef, ...]) -> tuple[Message, ...]:
        """See `StageHandler`."""
        return (task.next(objects),)

    def _decode(
        self, running: TaskContext[DecodeTask], tokens: Int[np.ndarray, "pictures tokens"]
    ) -> tuple[UInt8[np.ndarray, "pictures height width 3"], float]:
        def decode() -> tuple[np.ndarray, float]:
            running.check()
            running.reach("engine-step")
            began = time.monotonic()
            return self._engine.decode(tokens), time.monotonic() - began

        return self._compute.run(decode)

    def _write(self, task: DecodeTask, index: int, pixels: UInt8[np.ndarray, "height width 3"]) -> ObjectRef:
        """Writes a picture's file, which says how it was drawn; its score is not known yet."""
        drawn = self._rewriter(task.prompt).prompt
        drawing = Drawing(
            prompt=task.prompt,
            seed=task.seed,
            model=task.model,
            revision=task.revision,
            sampling=task.sampling,
            candidates=task.candidates_in_job,
            candidate=index,
            drawn=None if drawn == task.prompt else drawn,
        )
        file = png_bytes(Image.fromarray(pixels), drawing)
        return self.store.put(task.keys.candidate(index), file, content_type="image/png")
