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
from smalti.service.cancellation import Cancellations
from smalti.service.compute import ComputeThread
from smalti.service.process import Process
from smalti.service.stage import StageHandler, StageOutput, TaskContext
from smalti.storage import ObjectRef
from smalti.text.rewording import Rewriter

DIGITS = 4
"""Of a score after the point: what lies beyond differs between machines."""


@dataclass(frozen=True)
class PictureFile:
    """A picture that a decoder has written."""

    image: Image.Image
    """In RGB."""
    size: int
    """Of the file, in bytes."""
    sha256: str
    """Of the file."""


class RankHandler(StageHandler[RankTask, list[PictureFile]]):
    """Scores the pictures of a chunk."""

    stage = Stage.RANK

    def __init__(
        self,
        process: Process,
        folder: ModelFolder,
        cancellations: Cancellations,
        engine: RankerEngine,
        compute: ComputeThread,
        rewriter: Rewriter,
    ) -> None:
        """Takes the engine, the thread that it computes in, and what says prompts in the model's words."""
        super().__init__(process, folder, cancellations)
        self._engine = engine
        self._compute = compute
        self._rewriter = rewriter

    def outputs(self, task: RankTask) -> tuple[str, ...]:
        """See `StageHandler`."""
        return (task.keys.scores(task.chunk),)

    def read(self, task: RankTask) -> list[PictureFile]:
        """See `StageHandler`."""
        return self.side_by_side.map(self._read_picture, task.pictures)

    def make(self, running: TaskContext[RankTask], content: list[PictureFile]) -> StageOutput:
        """See `StageHandler`."""
        task = running.task
        images = [picture.image for picture in content]
        prompt = self._rewriter(task.prompt).prompt
        running.reach("after-read")

        def rank() -> tuple[list[float], float]:
            running.check_begin()
            running.reach("engine-step")
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
                for index, score, picture in zip(task.candidates, scores, content, strict=True)
            )
        ).to_bytes()
        running.check()
        running.reach("before-write")
        key = self.outputs(task)[0]
        return StageOutput((self.store.put(key, scored, content_type="application/json"),), seconds)

    def follow(self, task: RankTask, objects: tuple[ObjectRef, ...]) -> tuple[Message, ...]:
        """See `StageHandler`; the gateway learns from the event that the chunk is finished."""
        return ()

    def _read_picture(self, ref: ObjectRef) -> PictureFile:
        content = self.store.get(ref.key, sha256=ref.sha256)
        try:
            with Image.open(io.BytesIO(content), formats=("PNG",)) as opened:
                return PictureFile(opened.convert("RGB"), len(content), ref.sha256)
        except (OSError, SyntaxError, ValueError) as error:
            raise DamagedObjectError(ref.key, f"it is no picture: {error}") from None
