"""The stage that turns image tokens into pictures: `jobs/<job>/candidates/<index>.png`."""

import time

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from smalti.engines.decoder import DecoderEngine
from smalti.messages import DecodeTask, Message, Stage
from smalti.models.rewording import Rewriter
from smalti.models.sizes import Sizes
from smalti.pictures import Drawing, png_bytes
from smalti.service.cancellation import Cancellations
from smalti.service.compute import ComputeThread
from smalti.service.objects import read_tokens
from smalti.service.process import Process
from smalti.service.stage import Made, Running, StageHandler
from smalti.storage import ObjectRef


class DecodeHandler(StageHandler[DecodeTask]):
    """Decodes the pictures of a chunk."""

    stage = Stage.DECODE

    def __init__(
        self,
        process: Process,
        sizes: Sizes,
        cancellations: Cancellations,
        engine: DecoderEngine,
        compute: ComputeThread,
        rewriter: Rewriter,
    ) -> None:
        """Takes the engine, the thread that it computes in, and what says prompts in the model's words."""
        super().__init__(process, sizes.folder, cancellations)
        self._sizes = sizes
        self._engine = engine
        self._compute = compute
        self._rewriter = rewriter

    def outputs(self, task: DecodeTask) -> tuple[str, ...]:
        """See `StageHandler`."""
        return tuple(task.keys.candidate(index) for index in task.candidates)

    def make(self, running: Running[DecodeTask]) -> Made:
        """See `StageHandler`."""
        task = running.task
        tokens = read_tokens(self.store, task.tokens, len(task.candidates), self._sizes)
        running.reach("after-read")
        running.check_begin()
        seconds, files = 0.0, []
        # As many at a time as one run of the program takes: between them others have their turn.
        step = self._engine.batch_size
        for start in range(0, len(tokens), step):
            pictures, took = self._decode(running, tokens[start : start + step])
            seconds += took
            indices = task.candidates[start : start + step]
            files += [
                self._file(task, index, pixels) for index, pixels in zip(indices, pictures, strict=True)
            ]
        running.check()
        running.reach("before-write")
        written = self.side_by_side.map(
            lambda pair: self.store.put(*pair, content_type="image/png"),
            zip(self.outputs(task), files, strict=True),
        )
        return Made(tuple(written), seconds)

    def follow(self, task: DecodeTask, objects: tuple[ObjectRef, ...]) -> tuple[Message, ...]:
        """See `StageHandler`."""
        return (task.next(objects),)

    def _decode(
        self, running: Running[DecodeTask], tokens: Int[np.ndarray, "pictures tokens"]
    ) -> tuple[UInt8[np.ndarray, "pictures height width 3"], float]:
        def decode() -> tuple[np.ndarray, float]:
            running.check()
            running.reach("engine-step")
            began = time.monotonic()
            return self._engine.decode(tokens), time.monotonic() - began

        return self._compute.run(decode)

    def _file(self, task: DecodeTask, index: int, pixels: UInt8[np.ndarray, "height width 3"]) -> bytes:
        """Returns a picture's file, which says how it was drawn; its score is not known yet."""
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
        return png_bytes(Image.fromarray(pixels), drawing)
