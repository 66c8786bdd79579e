"""The last stage of a shard: its tar, the results of its prompts, and the report to the gateway."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, Generic

from smalti.batches import BatchKeys, BatchLayout, BatchPrompt, PictureFormat, PromptResult
from smalti.errors import DamagedObjectError
from smalti.messages import ShardReport, StageDone
from smalti.service.objects import is_there
from smalti.service.shards.handler import ShardHandler, ShardType
from smalti.service.stage import Inputs, StageOutput, TaskContext
from smalti.shards.output import ShardOutput, write_output
from smalti.shards.pictures import DrawnPrompt
from smalti.storage import ObjectRef

LINES: Final = "application/jsonl"


class FinishingHandler(ShardHandler[ShardType, Inputs], Generic[ShardType, Inputs]):
    """Handles the messages of a stage that may be the last one of a shard.

    The tar is written under a name with its content, and copied to its place in the output once the record says that it
    is the one that counts. So the results always describe the tar that is there, whoever else works on the shard.
    """

    @abstractmethod
    def is_last(self, task: ShardType) -> bool:
        """Returns whether this stage writes the output of the shard."""

    def output_names(self, task: ShardType) -> tuple[str, ...]:
        """Returns the names of the tar and of the results, if this stage is the last one."""
        return task.keys.shard_output, BatchKeys(task.batch).part(task.range)

    def copies(self, task: ShardType) -> Mapping[str, str]:
        """Returns the place of the tar in the output."""
        if not self.is_last(task):
            return {}
        return {task.keys.shard_output: BatchKeys(task.batch).tar(task.range)}

    def write_output(
        self, context: TaskContext[ShardType], drawn: Iterable[DrawnPrompt], path: Path
    ) -> tuple[ObjectRef, ...]:
        """Writes the tar and the results of a shard; returns references to both.

        Args:
            context: the task.
            drawn: the prompts with the chosen pictures.
            path: where the tar is made.
        """
        task = context.task
        output = write_output(
            drawn,
            path,
            tar=BatchLayout().tar(task.range),
            picture_format=PictureFormat(task.picture_format),
            model=task.model,
            revision=task.revision,
        )
        context.check()
        context.reach("before-write")
        tar = self.write_tar(task.keys.shard_output, path)
        results = PromptResult.to_bytes(output.results)
        part = self.write(task, BatchKeys(task.batch).part(task.range), results, content_type=LINES)
        return tar, part

    def done(self, context: TaskContext[ShardType], output: StageOutput) -> StageDone:
        """Puts the tar into its place, and returns the event with the report, if this stage is the last one."""
        task = context.task
        if not self.is_last(task):
            return super().done(context, output)
        tar, part = output.objects
        results = PromptResult.parse(part.key, self.store.get(part.key, sha256=part.sha256))
        report = self._report(
            context, part, tar, results, self.load_prompts(task), BatchKeys(task.batch).tar(task.range)
        )
        self.metrics.add("shards_total")
        for state in ("drawn", "failed", "invalid"):
            self.metrics.add("shard_prompts_total", sum(each.state == state for each in results), state=state)
        return task.done(seconds=output.seconds, skipped=output.skipped, shard=report)

    def _report(
        self,
        context: TaskContext[ShardType],
        part: ObjectRef,
        tar: ObjectRef,
        results: list[PromptResult],
        prompts: list[BatchPrompt],
        place: str,
    ) -> ShardReport:
        """Returns the report; the tar is in its place then, unless it is empty."""
        if [each.row for each in results] != [each.row for each in prompts]:
            raise DamagedObjectError(part.key, "is not about the prompts of the shard")
        output, size = ShardOutput(results=tuple(results)), 0
        if output.pictures:
            if not is_there(self.store, place, tar.sha256):
                # The record is deleted once the shard is done, so that this one may be of a worker that was too slow.
                # The marker is there by then.
                self.check_now(context)
                self.store.copy(tar, place)
            info = self.store.stat(place)
            size = info.size if info else 0
        return ShardReport(
            part=part,
            tar=ObjectRef(key=place, sha256=tar.sha256) if output.pictures else None,
            drawn=output.drawn,
            failed=len(results) - output.drawn,
            candidates=output.candidates(prompts),
            pictures=output.pictures,
            bytes=size,
        )
