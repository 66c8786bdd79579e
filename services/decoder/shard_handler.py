"""The stage that turns the tokens of shards into pictures: `jobs/<job>/shard/candidates-<content>.tar`."""

from smalti.batches import BatchPrompt
from smalti.engines.decoder import DecoderEngine
from smalti.messages import DecodeShardTask, Message, Stage
from smalti.registry.spec import ModelSpec
from smalti.service import Process
from smalti.service.cancellation import Cancellations
from smalti.service.compute import ComputeThread
from smalti.service.shards import ShardHandler, scratch_folder
from smalti.service.stage import StageOutput, TaskContext
from smalti.shards.decoding import decode_shard
from smalti.shards.tokens import ShardTokens
from smalti.storage import ObjectRef

Generated = tuple[list[BatchPrompt], ShardTokens]


class DecodeShardHandler(ShardHandler[DecodeShardTask, Generated]):
    """Decodes the pictures of a shard, those of one prompt at a time."""

    stage = Stage.DECODE

    def __init__(
        self,
        *,
        process: Process,
        spec: ModelSpec,
        cancellations: Cancellations,
        engine: DecoderEngine,
        compute: ComputeThread,
    ) -> None:
        """Adds the decoder to what every stage needs; see `DecodeHandler`."""
        super().__init__(process=process, folder=spec.folder, cancellations=cancellations)
        self._spec = spec
        self._engine = engine
        self._compute = compute

    def output_names(self, task: DecodeShardTask) -> tuple[str, ...]:  # noqa: D102
        return (task.keys.shard_candidates,)

    def load(self, task: DecodeShardTask) -> Generated:  # noqa: D102
        prompts, ref = self.load_prompts(task), task.tokens
        content = self.store.get(ref.key, sha256=ref.sha256)
        return prompts, ShardTokens.parse(ref.key, content, prompts, self._spec)

    def run(self, context: TaskContext[DecodeShardTask], inputs: Generated) -> StageOutput:  # noqa: D102
        task, (prompts, tokens) = context.task, inputs
        steps = self.begin(context, prompts, self._compute)
        decoded = decode_shard(
            prompts,
            tokens,
            lambda rows: steps.compute(lambda: self._engine.decode(rows)),
            model=task.model,
            revision=task.revision,
            batch_size=self._engine.batch_size,
            on_prompt=steps.begin,
        )
        with scratch_folder() as folder:
            written = self.write_pictures(
                context, task.keys.shard_candidates, decoded, folder / "candidates.tar"
            )
        self.metrics.add("images_total", sum(len(rows) for rows in tokens.tokens if rows is not None))
        return StageOutput((written,), steps.seconds)

    def next_tasks(  # noqa: D102
        self, context: TaskContext[DecodeShardTask], objects: tuple[ObjectRef, ...]
    ) -> tuple[Message, ...]:
        return (context.task.next(objects[0]),)
