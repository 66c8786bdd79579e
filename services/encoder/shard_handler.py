"""The stage that encodes the prompts of shards: `jobs/<job>/shard/encodings-<content>.safetensors`."""

from smalti.batches import BatchPrompt
from smalti.engines.encoder import EncoderEngine
from smalti.messages import EncodeShardTask, Message, Stage
from smalti.registry.folder import ModelFolder
from smalti.service import Process
from smalti.service.cancellation import Cancellations
from smalti.service.compute import ComputeThread
from smalti.service.shards import ShardHandler
from smalti.service.stage import StageOutput, TaskContext
from smalti.shards.encoding import encode_shard
from smalti.storage import ObjectRef
from smalti.text.rewording import Rewriter


class EncodeShardHandler(ShardHandler[EncodeShardTask, list[BatchPrompt]]):
    """Rewrites the prompts of a shard, and encodes them."""

    stage = Stage.ENCODE

    def __init__(
        self,
        *,
        process: Process,
        folder: ModelFolder,
        cancellations: Cancellations,
        engine: EncoderEngine,
        compute: ComputeThread,
        rewriter: Rewriter,
    ) -> None:
        """Adds the encoder to what every stage needs; see `EncodeHandler`."""
        super().__init__(process=process, folder=folder, cancellations=cancellations)
        self._engine = engine
        self._compute = compute
        self._rewriter = rewriter

    def output_names(self, task: EncodeShardTask) -> tuple[str, ...]:  # noqa: D102
        return (task.keys.shard_encodings,)

    def load(self, task: EncodeShardTask) -> list[BatchPrompt]:  # noqa: D102
        return self.load_prompts(task)

    def run(  # noqa: D102
        self, context: TaskContext[EncodeShardTask], inputs: list[BatchPrompt]
    ) -> StageOutput:
        task = context.task
        steps = self.begin(context, inputs, self._compute)
        made = encode_shard(
            inputs,
            lambda text: steps.compute(lambda: self._engine.encode(text)),
            self._rewriter,
            on_prompt=steps.begin,
        )
        context.check()
        context.reach("before-write")
        return StageOutput((self.write(task, task.keys.shard_encodings, made.to_bytes()),), steps.seconds)

    def next_tasks(  # noqa: D102
        self, context: TaskContext[EncodeShardTask], objects: tuple[ObjectRef, ...]
    ) -> tuple[Message, ...]:
        return (context.task.next(objects[0]),)
