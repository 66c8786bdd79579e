"""The stage that scores the pictures of shards, and writes their output unless the refiner does."""

from smalti.batches import BatchPrompt
from smalti.engines.ranker import RankerEngine
from smalti.messages import Message, RankShardTask, Stage
from smalti.registry.folder import ModelFolder
from smalti.service import Process
from smalti.service.cancellation import Cancellations
from smalti.service.compute import ComputeThread
from smalti.service.shards import FinishingHandler, scratch_folder
from smalti.service.stage import StageOutput, TaskContext
from smalti.shards.pictures import read_pictures
from smalti.shards.ranking import rank_shard
from smalti.storage import ObjectRef


class RankShardHandler(FinishingHandler[RankShardTask, list[BatchPrompt]]):
    """Scores the pictures of a shard, those of one prompt at a time, and chooses the best."""

    stage = Stage.RANK

    def __init__(
        self,
        *,
        process: Process,
        folder: ModelFolder,
        cancellations: Cancellations,
        engine: RankerEngine,
        compute: ComputeThread,
    ) -> None:
        """Adds the ranker to what every stage needs; see `RankHandler`."""
        super().__init__(process=process, folder=folder, cancellations=cancellations)
        self._engine = engine
        self._compute = compute

    def is_last(self, task: RankShardTask) -> bool:  # noqa: D102
        return not task.has_second_pass

    def output_names(self, task: RankShardTask) -> tuple[str, ...]:
        """Returns the name of the chosen pictures, or those of the output."""
        return super().output_names(task) if self.is_last(task) else (task.keys.shard_chosen,)

    def load(self, task: RankShardTask) -> list[BatchPrompt]:
        """Loads the prompts; the pictures are read from a file, since there are too many for memory."""
        return self.load_prompts(task)

    def run(self, context: TaskContext[RankShardTask], inputs: list[BatchPrompt]) -> StageOutput:  # noqa: D102
        task = context.task
        with scratch_folder() as folder:
            candidates = folder / "candidates.tar"
            self.store.get_file(task.candidates.key, candidates, sha256=task.candidates.sha256)
            steps = self.begin(context, inputs, self._compute)
            ranked = rank_shard(
                read_pictures(task.candidates.key, candidates, inputs),
                lambda prompt, images: steps.compute(lambda: self._engine.look(prompt, images)),
                on_prompt=steps.begin,
            )
            if self.is_last(task):
                written = self.write_output(context, ranked, folder / "output.tar")
            else:
                chosen = self.write_pictures(context, task.keys.shard_chosen, ranked, folder / "chosen.tar")
                written = (chosen,)
        return StageOutput(written, steps.seconds)

    def next_tasks(  # noqa: D102
        self, context: TaskContext[RankShardTask], objects: tuple[ObjectRef, ...]
    ) -> tuple[Message, ...]:
        return () if self.is_last(context.task) else (context.task.next(objects[0]),)
