"""The stage that scores pictures: `jobs/<job>/scores/<chunk>.json`."""

import io
import time
from dataclasses import dataclass

from PIL import Image

from smalti.engines.ranker import RankerEngine
from smalti.errors import DamagedObjectError
from smalti.messages import Message, RankTask, Stage
from smalti.registry.folder import ModelFolder
from smalti.results import ScoredPicture, ScoresFile
from smalti.service import Process
from smalti.service.cancellation import Cancellations
from smalti.service.compute import ComputeThread
from smalti.service.prompts import effective_prompt
from smalti.service.stage import StageHandler, StageOutput, TaskContext
from smalti.storage import ObjectRef
from smalti.text.rewording import Rewriter

DIGITS = 4
"""Decimal places of a score; further ones differ between machines."""


@dataclass(frozen=True)
class PictureFile:
    """A picture that the decoder has written."""

    image: Image.Image
    """The picture, in RGB mode."""
    size: int
    """Bytes of the file."""
    sha256: str
    """SHA-256 of the file, in hexadecimal."""


class RankHandler(StageHandler[RankTask, list[PictureFile]]):
    """Scores the pictures of a chunk."""

    stage = Stage.RANK

    def __init__(
        self,
        *,
        process: Process,
        folder: ModelFolder,
        cancellations: Cancellations,
        engine: RankerEngine,
        compute: ComputeThread,
        rewriter: Rewriter,
    ) -> None:
        """Adds the ranker to what every stage needs.

        Args:
            process: provides the store, the publisher and the settings.
            folder: the loaded model.
            cancellations: tells which jobs were cancelled; closed with the handler.
            engine: the ranker.
            compute: the thread in which the ranker runs.
            rewriter: rewrites the prompt of a task of version 1, which does not carry the effective prompt.
        """
        super().__init__(process=process, folder=folder, cancellations=cancellations)
        self._engine = engine
        self._compute = compute
        self._rewriter = rewriter

    def output_keys(self, task: RankTask) -> tuple[str, ...]:  # noqa: D102
        return (task.keys.scores(task.chunk),)

    def load(self, task: RankTask) -> list[PictureFile]:  # noqa: D102
        return self.store_executor.map(self._read_picture, task.pictures)

    def run(  # noqa: D102
        self, context: TaskContext[RankTask], inputs: list[PictureFile]
    ) -> StageOutput:
        task = context.task
        images = [picture.image for picture in inputs]
        prompt = effective_prompt(task, self._rewriter)
        context.reach("after-read")

        def rank() -> tuple[list[float], float]:
            context.check_begin()
            context.reach("engine-step")
            began = time.monotonic()
            return self._engine.rank(prompt, images).tolist(), time.monotonic() - began

        scores, seconds = self._compute.run(rank)
        scored = ScoresFile(
            pictures=tuple(
                ScoredPicture(
                    index=index,
                    score=round(score, DIGITS),
                    sha256=picture.sha256,
                    size=picture.size,
                    width=picture.image.width,
                    height=picture.image.height,
                )
                for index, score, picture in zip(task.candidates, scores, inputs, strict=True)
            )
        ).to_bytes()
        context.check()
        context.reach("before-write")
        key = task.keys.scores(task.chunk)
        return StageOutput((self.store.put(key, scored, content_type="application/json"),), seconds)

    def next_tasks(
        self, context: TaskContext[RankTask], objects: tuple[ObjectRef, ...]
    ) -> tuple[Message, ...]:
        """Returns nothing: the gateway learns from the event that the chunk is finished."""
        return ()

    def _read_picture(self, ref: ObjectRef) -> PictureFile:
        content = self.store.get(ref.key, sha256=ref.sha256)
        try:
            with Image.open(io.BytesIO(content), formats=("PNG",)) as opened:
                return PictureFile(opened.convert("RGB"), len(content), ref.sha256)
        except (OSError, SyntaxError, ValueError) as error:
            raise DamagedObjectError(ref.key, f"not a PNG: {error}") from None
