"""The stage that scores pictures: `jobs/<job>/scores/<chunk>-<content>.json`."""

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from smalti.engines.ranker import RankerEngine
from smalti.errors import DamagedObjectError
from smalti.messages import Message, RankTask, Stage
from smalti.models.clip import Ranking
from smalti.registry.folder import ModelFolder
from smalti.results import RankedPicture, ScoresFile, pack_features
from smalti.selection import SCORE_DIGITS
from smalti.service import Process
from smalti.service.cancellation import Cancellations
from smalti.service.compute import ComputeThread
from smalti.service.prompts import effective_prompt, wordings_of
from smalti.service.stage import StageHandler, StageOutput, TaskContext
from smalti.storage import ObjectRef
from smalti.text.rewording import Rewriter


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

    def output_names(self, task: RankTask) -> tuple[str, ...]:  # noqa: D102
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

        def rank() -> tuple[Ranking, float]:
            context.check_begin()
            context.reach("engine-step")
            began = time.monotonic()
            return self._engine.look(prompt, images), time.monotonic() - began

        ranking, seconds = self._compute.run(rank)
        scored = self._scores_file(task, prompt, inputs, ranking).to_bytes()
        context.check()
        context.reach("before-write")
        written = self.write(task, task.keys.scores(task.chunk), scored, content_type="application/json")
        return StageOutput((written,), seconds)

    def next_tasks(
        self, context: TaskContext[RankTask], objects: tuple[ObjectRef, ...]
    ) -> tuple[Message, ...]:
        """Returns nothing: the gateway learns from the event that the chunk is finished."""
        return ()

    def _scores_file(
        self, task: RankTask, prompt: str, pictures: Sequence[PictureFile], ranking: Ranking
    ) -> ScoresFile:
        """Returns the scores of a task's pictures; with their wordings and features if the task wants them."""
        wordings = wordings_of(task, prompt, self._rewriter)
        rows = zip(task.candidates, pictures, ranking.scores, ranking.features, wordings, strict=True)
        return ScoresFile(
            pictures=tuple(
                RankedPicture(
                    index=index,
                    score=round(float(score), SCORE_DIGITS),
                    sha256=picture.sha256,
                    size=picture.size,
                    width=picture.image.width,
                    height=picture.image.height,
                    wording=wording,
                    features=pack_features(features) if task.keep_features else None,
                )
                for index, picture, score, features, wording in rows
            )
        )

    def _read_picture(self, ref: ObjectRef) -> PictureFile:
        content = self.store.get(ref.key, sha256=ref.sha256)
        try:
            with Image.open(io.BytesIO(content), formats=("PNG",)) as opened:
                return PictureFile(opened.convert("RGB"), len(content), ref.sha256)
        except (OSError, SyntaxError, ValueError) as error:
            raise DamagedObjectError(ref.key, "not a PNG") from error
