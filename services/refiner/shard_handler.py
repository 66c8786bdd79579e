"""The stage that refines the chosen pictures of shards, and writes their output."""

from smalti.batches import BatchPrompt
from smalti.engines.refiner import RefinerEngine
from smalti.messages import RefineShardTask, Stage
from smalti.registry.spec import ModelSpec
from smalti.service import Process
from smalti.service.cancellation import Cancellations
from smalti.service.compute import ComputeThread
from smalti.service.shards import FinishingHandler, scratch_folder
from smalti.service.stage import StageOutput, TaskContext
from smalti.shards.encodings import ShardEncodings
from smalti.shards.pictures import read_pictures
from smalti.shards.refining import refine_shard
from smalti.shards.tokens import ShardTokens

Made = tuple[list[BatchPrompt], ShardTokens, ShardEncodings]


class RefineShardHandler(FinishingHandler[RefineShardTask, Made]):
    """Refines the chosen pictures of a shard, those of one prompt at a time."""

    stage = Stage.REFINE

    def __init__(
        self,
        *,
        process: Process,
        spec: ModelSpec,
        cancellations: Cancellations,
        engine: RefinerEngine,
        compute: ComputeThread,
    ) -> None:
        """Adds the refiner to what every stage needs; see `RefineHandler`."""
        super().__init__(process=process, folder=spec.folder, cancellations=cancellations)
        self._spec = spec
        self._engine = engine
        self._compute = compute

    def is_last(self, task: RefineShardTask) -> bool:  # noqa: D102
        return True

    def load(self, task: RefineShardTask) -> Made:
        """Loads the prompts, tokens and encodings; the pictures are read from a file."""
        prompts = self.load_prompts(task)
        tokens, encodings = self.store_executor.map(
            lambda ref: self.store.get(ref.key, sha256=ref.sha256), (task.tokens, task.encodings)
        )
        return (
            prompts,
            ShardTokens.parse(task.tokens.key, tokens, prompts, self._spec),
            ShardEncodings.parse(task.encodings.key, encodings, prompts, self._spec),
        )

    def run(self, context: TaskContext[RefineShardTask], inputs: Made) -> StageOutput:  # noqa: D102
        task, (prompts, tokens, encodings) = context.task, inputs
        with scratch_folder() as folder:
            chosen = folder / "chosen.tar"
            self.store.get_file(task.chosen.key, chosen, sha256=task.chosen.sha256)
            steps = self.begin(context, prompts, self._compute)
            refined = refine_shard(
                read_pictures(task.chosen.key, chosen, prompts),
                tokens,
                encodings,
                lambda pictures, second_pass, seed: steps.compute(
                    lambda: self._engine.run(pictures, second_pass, seed)
                ),
                refiner=self._spec.refiner_revision,
                batch_size=self._engine.batch_size,
                on_prompt=steps.begin,
            )
            written = self.write_output(context, refined, folder / "output.tar")
        return StageOutput(written, steps.seconds)
