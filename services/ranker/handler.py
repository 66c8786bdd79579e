"""The stage that scores pictures: `jobs/<job>/scores/<chunk>.json`."""

import io
import time

from PIL import Image

from smalti.engines.ranker import RankerEngine
from smalti.messages import Message, RankTask, Stage
from smalti.models.folder import ModelFolder
from smalti.models.rewording import Rewriter
from smalti.results import ScoredPicture, ScoresFile
from smalti.service.cancellation import Cancellations
from smalti.service.compute import ComputeThread
from smalti.service.process import Process
from smalti.service.stage import Made, Running, StageHandler
from smalti.storage import DamagedObjectError, ObjectRef

DIGITS = 4
"""Of a score after the point: what lies beyond differs between machines."""


class RankHandler(StageHandler[RankTask]):
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

    def make(self, running: Running[RankTask]) -> Made:
        """See `StageHandler`."""
        task = running.task
        files = self.side_by_side.map(lambda ref: self.store.get(ref.key, sha256=ref.sha256), task.pictures)
        images = [_image(ref.key, file) for ref, file in zip(task.pictures, files, strict=True)]
        prompt = self._rewriter(task.prompt).prompt
        running.reach("after-read")

        def rank() -> tuple[list[float], float]:
            running.check_begin()
            running.reach("engine-step")
            began = time.monotonic()
            return self._engine.rank(prompt, images).tolist(), time.monotonic() - began

        scores, seconds = self._compute.run(rank)
        content = ScoresFile(
            pictures=tuple(
                ScoredPicture(
                    index=index,
                    score=round(score, DIGITS),
                    sha256=ref.sha256,
                    size=len(file),
                    width=image.width,
                    height=image.height,
                )
                for index, score, ref, file, image in zip(
                    task.candidates, scores, task.pictures, files, images, strict=True
                )
            )
        ).to_bytes()
        running.check()
        running.reach("before-write")
        key = self.outputs(task)[0]
        return Made((self.store.put(key, content, content_type="application/json"),), seconds)

    def follow(self, task: RankTask, objects: tuple[ObjectRef, ...]) -> tuple[Message, ...]:
        """See `StageHandler`; the gateway learns from the event that the chunk is finished."""
        return ()


def _image(key: str, content: bytes) -> Image.Image:
    """Reads a picture that a decoder has written."""
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as opened:
            return opened.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise DamagedObjectError(key, f"it is no picture: {error}") from None
