"""What the four stages have in common when they handle a message.

A stage looks whether its work was done before, reads what it needs, computes, writes, and says what follows. What is in
particular to encode, generate, decode or rank is in `services/`.
"""

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from smalti.errors import DamagedObjectError, MissingObjectError, RequestCancelledError, RequestExpiredError
from smalti.messages import ChunkTask, FailureReason, Message, Reading, Stage, Work
from smalti.queue import Delivery, GiveBackError, PermanentError, RetryError
from smalti.registry.folder import ModelFolder
from smalti.service import failpoints
from smalti.service.cancellation import Cancellations, CancellationToken
from smalti.service.process import Process
from smalti.service.side_by_side import StoreExecutor
from smalti.storage import ObjectRef, find

log = logging.getLogger(__name__)

DRAIN_SHARE = 0.8
"""The share of the drain's time that work which has begun may use; the rest is for giving it back."""

TaskType = TypeVar("TaskType", bound=Work)
Input = TypeVar("Input")
"""What a stage reads."""


class TaskContext(Generic[TaskType]):
    """A task that is being worked on."""

    def __init__(
        self, task: TaskType, watched: CancellationToken, draining: threading.Event, drain: float
    ) -> None:
        """Begins.

        Args:
            task: what is to be done.
            watched: knows whether its job was cancelled.
            draining: set when the worker stops.
            drain: the seconds that it has then.
        """
        self.task = task
        self.watched = watched
        self._draining = draining
        self._drain = drain
        self._until: float | None = None

    def check(self) -> None:
        """To be called before every step that takes long.

        Raises:
            PermanentError: the job was cancelled, or its time is over.
            GiveBackError: the worker stops, and has no time left for this.
        """
        self.watched.check()
        if self.task.expires <= time.time():
            raise PermanentError(FailureReason.EXPIRED, "the job's time ran out while it was worked on")
        left = self.seconds_left()
        if left is not None and left <= 0:
            raise GiveBackError("the worker stops")

    def seconds_left(self) -> float | None:
        """Returns how long the work may still take, if the worker stops; None while it does not."""
        if not self._draining.is_set():
            return None
        if self._until is None:
            self._until = time.monotonic() + DRAIN_SHARE * self._drain
        return self._until - time.monotonic()

    def wait_for_the_end(self) -> None:
        """Waits until the worker stops, which is about to happen; not for ever, should it not."""
        self._draining.wait(self._drain)

    def check_begin(self) -> None:
        """As `check`, before the first step of all: a worker that stops gives back what it has not begun."""
        self.check()
        if self._draining.is_set():
            raise GiveBackError("the worker stops")

    def reach(self, point: str) -> None:
        """Passes a failpoint of the stage."""
        task = self.task
        failpoints.reach(
            f"{task.stage_queue}.{point}", job=task.job, prompt=task.prompt, chunk=getattr(task, "chunk", "")
        )


@dataclass(frozen=True)
class StageOutput:
    """What a stage has written."""

    objects: tuple[ObjectRef, ...]
    seconds: float
    """How long the engine took."""
    skipped: bool = False
    """Whether they were there already."""


class StageHandler(ABC, Generic[TaskType, Input]):
    """Handles the messages of a stage; a `smalti.queue.Handler`."""

    stage: ClassVar[Stage]

    def __init__(self, process: Process, folder: ModelFolder, cancellations: Cancellations) -> None:
        """Takes what every stage needs.

        Args:
            process: has the store and the settings.
            folder: the model that is loaded.
            cancellations: knows which jobs were cancelled.
        """
        self.store = process.store
        self.publisher = process.publisher
        self.side_by_side = StoreExecutor()
        self._broker = process.broker
        self._folder = folder
        self._cancellations = cancellations

    @abstractmethod
    def outputs(self, task: TaskType) -> tuple[str, ...]:
        """Returns the keys of what the stage writes."""

    @abstractmethod
    def read(self, task: TaskType) -> Input:
        """Reads what the stages before have written.

        Raises:
            InvalidInputError: the task is none for this model.
            MissingObjectError: something that it reads is not there.
            DamagedObjectError: something that it reads is not what was written.
        """

    @abstractmethod
    def make(self, running: TaskContext[TaskType], content: Input) -> StageOutput:
        """Computes and writes.

        Args:
            running: the task.
            content: what was read for it.
        """

    @abstractmethod
    def follow(self, task: TaskType, objects: tuple[ObjectRef, ...]) -> tuple[Message, ...]:
        """Returns what is to be done next, once the objects are durable."""

    def reading(self, task: TaskType) -> Reading | None:
        """Returns how the prompt was read; for the stage that reads it."""
        return None

    def close(self) -> None:
        """To be called when no message is handled any more."""
        self.side_by_side.close()
        self._cancellations.close()

    def __call__(self, delivery: Delivery) -> Iterator[Message]:
        """Handles a message; see `smalti.queue.Handler`."""
        task: TaskType = delivery.message  # type: ignore[assignment]
        self._check_model(task)
        with self._cancellations.watch(task.job) as watched:
            running = TaskContext(task, watched, delivery.draining, self._broker.drain)
            try:
                made = self._find_or_make(running)
            except (MissingObjectError, DamagedObjectError) as error:
                yield self._from_the_start(task, error)
                return
            except RequestCancelledError as error:
                raise PermanentError(FailureReason.CANCELLED, "the job was cancelled") from error
            except RequestExpiredError as error:
                raise PermanentError(FailureReason.EXPIRED, str(error)) from error
            if not made.skipped:
                log.info("the work is done, in %.3f s of the engine", made.seconds)
            running.reach("after-write")
            yield from self.follow(task, made.objects)
            yield task.done(
                *made.objects, seconds=made.seconds, skipped=made.skipped, reading=self.reading(task)
            )
            running.reach("after-publish")

    def _find_or_make(self, running: TaskContext[TaskType]) -> StageOutput:
        """Returns what the stage has written before, or writes it now.

        Raises:
            PermanentError: the job was cancelled.
            MissingObjectError: something that it reads is not there.
            DamagedObjectError: something that it reads is not what was written.
        """
        task = running.task
        # What it would read is read meanwhile: a stage waits for the store longer than the store computes.
        looking = self.side_by_side.submit(lambda: self._cancellations.look(running.watched))
        finding = self.side_by_side.submit(lambda: find(self.store, *self.outputs(task)))

        def found() -> StageOutput | None:
            looking.result()
            running.watched.check()
            objects = finding.result()
            return StageOutput(objects, 0.0, skipped=True) if objects else None

        try:
            content = self.read(task)
        except (MissingObjectError, DamagedObjectError):
            if made := found():
                return made
            raise
        return found() or self.make(running, content)

    def _check_model(self, task: TaskType) -> None:
        if (task.model, task.revision) != (self._folder.name, self._folder.revision):
            raise PermanentError(
                FailureReason.MODEL,
                f"{task.model} {task.revision} is asked for; {self._folder.name} {self._folder.revision} is loaded",
            )

    def _from_the_start(self, task: TaskType, error: MissingObjectError | DamagedObjectError) -> Message:
        """Returns what makes the chunk from the prompt again, without what is damaged."""
        if not isinstance(task, ChunkTask):
            raise error
        if task.attempt >= self._broker.attempts:
            raise RetryError(str(error)) from error
        log.warning("chunk %d of %s begins again: %s", task.chunk, task.job, error)
        # Whether it is damaged or only not the one that was meant: the stage that made it would find it, and skip.
        self.store.delete(error.key)
        return task.from_the_start()
