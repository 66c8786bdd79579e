"""The shared part of the stages of shards: loading the prompts, progress, and what is computed for each prompt."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Generic, TypeVar

from smalti.batches import TAR, BatchPrompt, ShardFile
from smalti.errors import DamagedObjectError, MissingObjectError
from smalti.messages import FailureReason, Message, ShardTask
from smalti.queue import Delivery, PermanentError, Publisher
from smalti.service.compute import ComputeThread
from smalti.service.stage import Inputs, StageHandler, TaskContext
from smalti.shards.pictures import DrawnPrompt, write_pictures
from smalti.storage import ObjectRef, content_key, digest_of_file

PROGRESS_SECONDS: Final = 5.0
"""Shortest interval between two events on the progress of a shard; each renews its lease."""

ShardType = TypeVar("ShardType", bound=ShardTask)
Result = TypeVar("Result")


class ShardHandler(StageHandler[ShardType, Inputs], Generic[ShardType, Inputs]):
    """Handles the messages of a stage that are about shards."""

    def records(self, task: ShardType) -> Mapping[str, tuple[str, ...]]:
        """Returns the record of what the stage writes for a shard."""
        return {task.keys.outputs(self.stage, "shard"): self.output_names(task)}

    def load_prompts(self, task: ShardType) -> list[BatchPrompt]:
        """Loads the prompts that a task is about.

        Raises:
            PermanentError: the file with the prompts is missing or damaged, and only the gateway can write it.
        """
        part = task.range
        try:
            prompts = ShardFile.parse(
                task.shard.key, self.store.get(task.shard.key, sha256=task.shard.sha256)
            )
            chosen = part.of(prompts)
            if len(chosen) != part.count:
                raise DamagedObjectError(
                    task.shard.key, f"has {len(prompts)} prompts; the task is about {part.name}"
                )
        except (MissingObjectError, DamagedObjectError) as error:
            raise PermanentError(FailureReason.INPUTS, str(error)) from error
        return chosen

    def begin(
        self,
        context: TaskContext[ShardType],
        prompts: Sequence[BatchPrompt],
        compute: ComputeThread | None = None,
    ) -> "ShardSteps":
        """Checks that a shard may begin once its inputs are read, and tells the gateway so; see `ShardSteps`."""
        context.reach("after-read")
        context.check_begin()
        return ShardSteps(context, self.publisher, prompts, compute)

    def write_pictures(
        self, context: TaskContext[ShardType], name: str, drawn: Iterable[DrawnPrompt], path: Path
    ) -> ObjectRef:
        """Writes prompts with their pictures for the next stage.

        Args:
            context: the task.
            name: the name of the object.
            drawn: the prompts with their pictures.
            path: where the tar is made.
        """
        write_pictures(path, drawn)
        context.check()
        context.reach("before-write")
        return self.write_tar(name, path)

    def write_tar(self, name: str, path: Path) -> ObjectRef:
        """Writes an object of the stage from a tar."""
        return self.store.put_file(content_key(name, digest_of_file(path)), path, content_type=TAR)

    def next_tasks(
        self, context: TaskContext[ShardType], objects: tuple[ObjectRef, ...]
    ) -> tuple[Message, ...]:
        """Returns nothing; all stages but the last return the next task."""
        return ()


class ShardSteps:
    """The prompts of a shard on their way through a stage: checks, failpoints, progress, and the time in the engine."""

    def __init__(
        self,
        context: TaskContext[ShardType],
        publisher: Publisher,
        prompts: Sequence[BatchPrompt],
        compute: ComputeThread | None = None,
    ) -> None:
        """Tells the gateway that the stage begins.

        Args:
            context: the task.
            publisher: sends the progress.
            prompts: the prompts of the shard.
            compute: the thread in which the engine runs; None for a stage that does not call `compute`.
        """
        self._context = context
        self._publisher = publisher
        self._compute = compute
        self._total = sum(prompt.candidates for prompt in prompts if prompt.problem is None)
        self._done = 0
        self._prompt: BatchPrompt | None = None
        self._told = 0.0
        self.seconds = 0.0
        """Time spent in the engine."""
        self.tell(0, self._total)

    def begin(self, prompt: BatchPrompt) -> None:
        """Checks that the task may continue with a prompt; those before it are done."""
        before, self._prompt = self._prompt, prompt
        if before is not None and before.problem is None:
            self._done += before.candidates
        self._context.check()
        self.tell(self._done, self._total)

    def compute(self, call: Callable[[], Result]) -> Result:
        """Returns what the engine computes for the current prompt.

        Other work of the engine gets its turn between two of these calls.
        """
        assert self._compute is not None
        prompt = self._prompt.prompt if self._prompt else ""

        def step() -> tuple[Result, float]:
            self._context.check()
            self._context.reach("engine-step", prompt)
            began = time.monotonic()
            return call(), time.monotonic() - began

        result, seconds = self._compute.run(step)
        self.seconds += seconds
        return result

    def tell(self, done: int, total: int) -> None:
        """Tells the gateway how far the stage is, unless it was told a moment ago."""
        now = time.monotonic()
        if not self._told or now - self._told >= PROGRESS_SECONDS:
            self._told = now
            self._publisher.offer(self._context.task.progress(done, total))


class HandlerByKind:
    """Passes the messages of a stage on: those about shards to one handler, and all others to another one."""

    def __init__(self, jobs: StageHandler, shards: ShardHandler) -> None:
        """Takes both handlers; they are closed together."""
        self._jobs = jobs
        self._shards = shards

    def __call__(self, delivery: Delivery) -> Iterator[Message]:
        """Handles a message; see `smalti.queue.Handler`."""
        handler = self._shards if isinstance(delivery.message, ShardTask) else self._jobs
        return handler(delivery)

    def close(self) -> None:
        """Ends the threads of both."""
        self._jobs.close()
        self._shards.close()
