"""The shared part of the stages: handling a message.

A stage checks whether its work is already done, loads its inputs, computes, writes, and sends the messages that follow.
The handlers in `services/` add what is particular to encoding, generating, decoding, ranking and refining.
"""

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Generic, TypeVar

import numpy as np
from jaxtyping import UInt8

from smalti.errors import (
    DamagedObjectError,
    EngineFailedError,
    MissingObjectError,
    RequestCancelledError,
    RequestExpiredError,
)
from smalti.messages import FailureReason, Message, PromptReading, RoutedTask, ShardTask, Stage, StageDone
from smalti.queue import Delivery, GiveBackError, HoldBackError, PermanentError, Publisher, RetryError
from smalti.registry.folder import ModelFolder
from smalti.registry.routes import route_keys
from smalti.service import failpoints
from smalti.service.cancellation import Cancellations, CancellationToken
from smalti.service.compute import ComputeThread
from smalti.service.objects import StoreExecutor, find_outputs, record_outputs
from smalti.service.process import Process
from smalti.storage import ObjectRef, find

log = logging.getLogger(__name__)

DRAIN_SHARE = 0.8
"""The share of the drain time in which a task that has begun may finish; the rest is left for giving it back."""

TaskType = TypeVar("TaskType", bound=RoutedTask)
Inputs = TypeVar("Inputs")
"""The inputs that a stage loads."""


class TaskContext(Generic[TaskType]):
    """A task in progress."""

    def __init__(
        self,
        task: TaskType,
        *,
        cancellation: CancellationToken,
        draining: threading.Event,
        drain_seconds: float,
        reading: PromptReading | None = None,
    ) -> None:
        """Describes the task to the handler.

        Args:
            task: the task.
            cancellation: tells whether the job was cancelled.
            draining: set when the worker stops.
            drain_seconds: how long the worker may take to stop.
            reading: how the model reads the prompt; None in all stages but the encoder.
        """
        self.task = task
        self.cancellation = cancellation
        self.reading = reading
        self._draining = draining
        self._drain_seconds = drain_seconds
        self._until: float | None = None

    def check(self) -> None:
        """Checks that the task may continue; call it before every long step.

        Raises:
            PermanentError: the job was cancelled or has expired.
            GiveBackError: the worker stops, and the task's share of the drain time is used up.
        """
        self.cancellation.check()
        if self.task.late_at <= time.time():
            raise PermanentError(FailureReason.EXPIRED, "the job expired while it was in progress")
        left = self.seconds_left()
        if left is not None and left <= 0:
            raise GiveBackError("the worker stops")

    def check_begin(self) -> None:
        """Checks as `check` does, before the first step: a worker that stops gives back what it has not begun."""
        self.check()
        if self._draining.is_set():
            raise GiveBackError("the worker stops")

    def seconds_left(self) -> float | None:
        """Returns how long the task may still take if the worker stops; None while it does not."""
        if not self._draining.is_set():
            return None
        if self._until is None:
            self._until = time.monotonic() + DRAIN_SHARE * self._drain_seconds
        return self._until - time.monotonic()

    def wait_for_drain(self) -> None:
        """Waits until the worker stops, for the length of a drain at most."""
        self._draining.wait(self._drain_seconds)

    def reach(self, point: str, prompt: str = "") -> None:
        """Triggers the failpoints of the stage at this point.

        Args:
            point: the point, without the stage.
            prompt: the prompt of a shard that is worked on, if it is one.
        """
        task = self.task
        failpoints.reach(
            f"{task.stage_queue}.{'shard-' if isinstance(task, ShardTask) else ''}{point}",
            job=task.job,
            prompt=prompt or getattr(task, "prompt", ""),
            chunk=getattr(task, "chunk", ""),
            shard=task.range.name if isinstance(task, ShardTask) else "",
        )


@dataclass(frozen=True)
class StageOutput:
    """The objects that a stage has written."""

    objects: tuple[ObjectRef, ...]
    seconds: float
    """Time spent in the engine."""
    skipped: bool = False
    """Whether an earlier attempt had already written the objects."""


class StageHandler(ABC, Generic[TaskType, Inputs]):
    """Handles the messages of a stage; a `smalti.queue.Handler`."""

    stage: ClassVar[Stage]

    def __init__(self, *, process: Process, folder: ModelFolder, cancellations: Cancellations) -> None:
        """Creates the executor for calls of the store.

        Args:
            process: provides the store, the publisher and the settings.
            folder: the loaded model.
            cancellations: tells which jobs were cancelled; closed with the handler.
        """
        self.store = process.store
        self.publisher: Publisher = process.publisher
        self.metrics = process.telemetry.metrics
        self.store_executor = StoreExecutor()
        self._broker = process.broker
        self._folder = folder
        self.key = route_keys(folder)[self.stage]
        self._cancellations = cancellations

    @abstractmethod
    def output_names(self, task: TaskType) -> tuple[str, ...]:
        """Returns the names of the objects that the stage writes, in order: keys without the content."""

    @abstractmethod
    def load(self, task: TaskType) -> Inputs:
        """Loads what earlier stages have written.

        Raises:
            InvalidInputError: the task does not fit the model.
            MissingObjectError: an input is missing.
            DamagedObjectError: an input is not what was written.
        """

    @abstractmethod
    def run(self, context: TaskContext[TaskType], inputs: Inputs) -> StageOutput:
        """Computes and writes the objects of the stage."""

    @abstractmethod
    def next_tasks(
        self, context: TaskContext[TaskType], objects: tuple[ObjectRef, ...]
    ) -> tuple[Message, ...]:
        """Returns the tasks that follow once the objects are durable."""

    def records(self, task: TaskType) -> Mapping[str, tuple[str, ...]]:
        """Returns the records of what is written: the names in each, by its key. One holds everything by default."""
        names = self.output_names(task)
        return {task.keys.outputs(self.stage, getattr(task, "chunk", 0)): names}

    def copies(self, task: TaskType) -> Mapping[str, str]:
        """Returns the keys of copies of what is written, by name, which will do as well; none by default."""
        return {}

    def done(self, context: TaskContext[TaskType], output: StageOutput) -> StageDone:
        """Returns the event that says that the stage has finished."""
        return context.task.done(
            *output.objects, seconds=output.seconds, skipped=output.skipped, reading=context.reading
        )

    def write(
        self, task: TaskType, name: str, content: bytes, *, content_type: str = "application/octet-stream"
    ) -> ObjectRef:
        """Writes an object of the stage."""
        return self.store.put(task.output_key(name, content), content, content_type=content_type)

    def read_prompt(self, task: TaskType) -> PromptReading | None:
        """Returns how the model reads the prompt; the encoder's handler does this, once for each task."""
        return None

    def run_in_batches(
        self,
        context: TaskContext[TaskType],
        compute: ComputeThread,
        *,
        pictures: int,
        batch_size: int,
        run: Callable[[slice], UInt8[np.ndarray, "pictures height width 3"]],
        write: Callable[[int, UInt8[np.ndarray, "height width 3"]], ObjectRef],
    ) -> StageOutput:
        """Computes the pictures of a task in batches, and writes each batch while the next one is computed.

        Args:
            context: the task.
            compute: the thread in which the engine runs.
            pictures: number of pictures.
            batch_size: number of pictures in a batch of the program.
            run: returns the pictures of a part of the inputs, in `compute`.
            write: writes the picture of the input at this position.
        """

        def compute_batch(batch: slice) -> tuple[np.ndarray, float]:
            context.check()
            context.reach("engine-step")
            began = time.monotonic()
            return run(batch), time.monotonic() - began

        seconds = 0.0
        written: list[Future[ObjectRef]] = []
        try:
            # One batch of the program at a time, so that other tasks and calls get their turn in between.
            for start in range(0, pictures, batch_size):
                end = min(start + batch_size, pictures)
                made, batch_seconds = compute.run(partial(compute_batch, slice(start, end)))
                seconds += batch_seconds
                context.check()
                context.reach("before-write")
                for position, pixels in zip(range(start, end), made, strict=True):
                    written.append(self.store_executor.submit(partial(write, position, pixels)))
            return StageOutput(tuple(each.result() for each in written), seconds)
        finally:
            wait(written)  # No write outlives a task that was given up.

    def check_now(self, context: TaskContext[TaskType]) -> None:
        """Looks at once whether the job was cancelled or has ended; raises `PermanentError` if so."""
        self._cancellations.check_now(context.cancellation)
        context.cancellation.check()

    def close(self) -> None:
        """Ends the threads; call it after the last message."""
        self.store_executor.close()
        self._cancellations.close()

    def __call__(self, delivery: Delivery) -> Iterator[Message]:
        """Handles a message; see `smalti.queue.Handler`."""
        task: TaskType = delivery.message  # type: ignore[assignment]
        self._check_model(task)
        with self._cancellations.watch(task.job) as cancellation:
            context = TaskContext(
                task,
                cancellation=cancellation,
                draining=delivery.draining,
                drain_seconds=self._broker.drain,
                reading=self.read_prompt(task),
            )
            try:
                output = self._find_or_run(context)
            except (MissingObjectError, DamagedObjectError) as error:
                yield self._from_the_start(task, error)
                return
            except EngineFailedError as error:
                if error.begun:
                    raise
                # The engine had stopped before it began the task: the process is about to end.
                context.wait_for_drain()
                raise GiveBackError("the engine has stopped") from error
            except RequestCancelledError as error:
                raise PermanentError(FailureReason.CANCELLED, "the job was cancelled") from error
            except RequestExpiredError as error:
                raise PermanentError(FailureReason.EXPIRED, str(error)) from error
            if not output.skipped:
                log.info("the work is done; the engine took %.3f s", output.seconds)
            context.reach("after-write")
            yield from self.next_tasks(context, output.objects)
            yield self.done(context, output)
            context.reach("after-publish")

    def _find_or_run(self, context: TaskContext[TaskType]) -> StageOutput:
        """Returns what an earlier attempt has written, or runs the stage.

        Raises:
            PermanentError: the job was cancelled.
            MissingObjectError: an input is missing.
            DamagedObjectError: an input is not what was written.
        """
        task = context.task
        # The inputs are loaded at the same time: a stage waits longer for the store than the store takes to answer.
        checking = self.store_executor.submit(lambda: self._cancellations.check_now(context.cancellation))
        records = None if task.version == 1 else self.records(task)
        finding = self.store_executor.submit(lambda: self._find(task, records))

        def find_output() -> StageOutput | None:
            checking.result()
            context.cancellation.check()
            objects = finding.result()
            return StageOutput(objects, 0.0, skipped=True) if objects else None

        try:
            inputs = self.load(task)
        except (MissingObjectError, DamagedObjectError):
            if output := find_output():
                return output
            raise
        return find_output() or self._record(task, self.run(context, inputs), records)

    def _find(
        self, task: TaskType, records: Mapping[str, tuple[str, ...]] | None
    ) -> tuple[ObjectRef, ...] | None:
        """Returns what an earlier attempt has written, if it is complete; version 1 has no records."""
        if records is None:
            return find(self.store, *self.output_names(task))
        found: list[ObjectRef] = []
        for record, names in records.items():
            objects = find_outputs(self.store, record, names, self.copies(task))
            if objects is None:
                return None
            found += objects
        return tuple(found)

    def _record(
        self, task: TaskType, output: StageOutput, records: Mapping[str, tuple[str, ...]] | None
    ) -> StageOutput:
        """Records what was written; returns what the next stage works on, which another worker may have written."""
        if records is None:
            return output
        refs = {ref.name: ref for ref in output.objects}
        recorded = self.store_executor.map(
            lambda each: record_outputs(
                self.store, each[0], [refs[name] for name in each[1]], self.copies(task)
            ),
            records.items(),
        )
        return replace(output, objects=tuple(ref for objects in recorded for ref in objects))

    def _check_model(self, task: TaskType) -> None:
        """Checks that this worker serves the task; raises `HoldBackError` if that is for another one."""
        folder, key = self._folder, task.routes.get(self.stage)
        if key is None and (task.model, task.revision) != (folder.name, folder.revision):
            raise HoldBackError(
                f"the task needs {task.model} {task.revision}; "
                f"this service has loaded {folder.name} {folder.revision}"
            )
        # Whatever the model is called: the key stands for all files that the stage works with.
        if key not in (None, self.key):
            raise HoldBackError(
                f"the task needs {task.model} with the key {key}; this service has {self.key}"
            )

    def _from_the_start(self, task: TaskType, error: MissingObjectError | DamagedObjectError) -> Message:
        """Deletes the damaged object, and returns the task that makes the same work again from its beginning."""
        again = task.from_the_start()
        if again is None:
            # Its inputs come from several chunks, which only the gateway can have made again.
            self.store.delete(error.key)
            raise PermanentError(FailureReason.INPUTS, str(error)) from error
        if task.attempt >= self._broker.attempts:
            raise RetryError(str(error)) from error
        log.warning("%s starts again from the prompt: %s", " ".join(task.work_key), error)
        # Even if the object is intact but not the expected one: the producing stage would find it and skip the work.
        self.store.delete(error.key)
        return again  # type: ignore[return-value]
