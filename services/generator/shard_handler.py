"""The stage that generates the image tokens of shards: `jobs/<job>/shard/tokens-<content>.safetensors`."""

import time

from smalti.batches import BatchPrompt
from smalti.engines.generator.engine import GeneratorEngine
from smalti.messages import GenerateShardTask, Message, Stage
from smalti.queue import GiveBackError
from smalti.registry.spec import ModelSpec
from smalti.service import Process
from smalti.service.cancellation import Cancellations
from smalti.service.shards import ShardHandler
from smalti.service.stage import StageOutput, TaskContext
from smalti.shards.encodings import ShardEncodings
from smalti.shards.generating import generate_shard
from smalti.storage import ObjectRef
from smalti.telemetry import tracing

Encoded = tuple[list[BatchPrompt], ShardEncodings]


class GenerateShardHandler(ShardHandler[GenerateShardTask, Encoded]):
    """Generates the tokens of all candidates of a shard."""

    stage = Stage.GENERATE

    def __init__(
        self, *, process: Process, spec: ModelSpec, cancellations: Cancellations, engine: GeneratorEngine
    ) -> None:
        """Adds the generator to what every stage needs; see `GenerateHandler`."""
        super().__init__(process=process, folder=spec.folder, cancellations=cancellations)
        self._spec = spec
        self._engine = engine

    def output_names(self, task: GenerateShardTask) -> tuple[str, ...]:  # noqa: D102
        return (task.keys.shard_tokens,)

    def load(self, task: GenerateShardTask) -> Encoded:  # noqa: D102
        prompts, ref = self.load_prompts(task), task.encodings
        content = self.store.get(ref.key, sha256=ref.sha256)
        return prompts, ShardEncodings.parse(ref.key, content, prompts, self._spec)

    def run(self, context: TaskContext[GenerateShardTask], inputs: Encoded) -> StageOutput:
        """Generates the tokens among other requests of the engine, which come first if they are interactive."""
        task, (prompts, encodings) = context.task, inputs
        steps = self.begin(context, prompts)
        began = time.monotonic()
        tracing.event(tracing.COMPUTE_BEGINS)
        try:
            made = generate_shard(
                prompts,
                encodings,
                self._engine,
                codebook_size=self._spec.codebook_size,
                slots=task.slots,
                deadline=time.monotonic() + task.late_at - time.time(),
                on_progress=steps.tell,
                check=lambda left: self._check(context, left),
            )
        finally:
            tracing.event(tracing.COMPUTE_ENDS)
        seconds = time.monotonic() - began
        context.check()
        context.reach("before-write")
        return StageOutput((self.write(task, task.keys.shard_tokens, made.to_bytes()),), seconds)

    def next_tasks(  # noqa: D102
        self, context: TaskContext[GenerateShardTask], objects: tuple[ObjectRef, ...]
    ) -> tuple[Message, ...]:
        return (context.task.next(objects[0]),)

    def _check(self, context: TaskContext[GenerateShardTask], left: int) -> None:
        """Checks that the task may continue; gives it back if the worker stops before its candidates are done."""
        context.check()
        seconds = context.seconds_left()
        if seconds is None:
            return
        batch = self._engine.batch
        dispatches = -(-left // self._engine.slots) * -(-batch.image_length // batch.steps_per_dispatch)
        if dispatches * self._engine.timing.dispatch_seconds > seconds:
            raise GiveBackError("the worker stops")
