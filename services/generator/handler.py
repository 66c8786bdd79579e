"""The stage that draws image tokens: `jobs/<job>/tokens/<chunk>.safetensors`."""

import queue
import time

import numpy as np
from jaxtyping import Int

from smalti.engines.encoding import Encoding
from smalti.engines.generator.engine import GeneratorEngine
from smalti.engines.generator.requests import Candidate, Drawn, GenerationHandle, GenerationRequest
from smalti.errors import EngineFailedError, EngineFullError, InvalidInputError
from smalti.messages import GenerateTask, Message, Stage
from smalti.queue import GiveBackError
from smalti.registry.spec import ModelSpec
from smalti.service.cancellation import Cancellations
from smalti.service.objects import read_encoding, tokens_bytes
from smalti.service.process import Process
from smalti.service.stage import StageHandler, StageOutput, TaskContext
from smalti.storage import ObjectRef
from smalti.telemetry import tracing

PROGRESS_SECONDS = 0.2
"""How often at most a chunk's progress is told."""
LOOK_SECONDS = 0.1
"""How often it is looked whether the worker stops, while nothing comes from the engine."""
MAX_ROW_LENGTH = 64
"""Tiles of a row that an event can hold."""


class GenerateHandler(StageHandler[GenerateTask, Encoding]):
    """Draws the tokens of a chunk."""

    stage = Stage.GENERATE

    def __init__(
        self, process: Process, spec: ModelSpec, cancellations: Cancellations, engine: GeneratorEngine
    ) -> None:
        """Takes the engine, which is shared with those who call it over gRPC."""
        super().__init__(process, spec.folder, cancellations)
        self._spec = spec
        self._engine = engine

    def outputs(self, task: GenerateTask) -> tuple[str, ...]:
        """See `StageHandler`."""
        return (task.keys.tokens(task.chunk),)

    def read(self, task: GenerateTask) -> Encoding:
        """See `StageHandler`."""
        self._check_given(task.given)
        return read_encoding(self.store, task.encoding, self._spec)

    def make(self, running: TaskContext[GenerateTask], content: Encoding) -> StageOutput:
        """See `StageHandler`."""
        task = running.task
        running.reach("after-read")
        running.check_begin()
        request = GenerationRequest(
            encoding=content,
            candidates=tuple(Candidate(task.seed, index, task.sampling) for index in task.candidates),
            priority=task.priority,
            deadline=time.monotonic() + task.expires - time.time(),
            given=task.given,
        )
        events: queue.SimpleQueue[Drawn | None] = queue.SimpleQueue()
        began = time.monotonic()
        handle = self._submit(running, request, events)
        tracing.event(tracing.COMPUTE_BEGINS)
        try:
            self._follow_drawing(running, handle, events)
        finally:
            handle.cancel()  # Where it was left on the way; it does nothing to a finished request.
            tracing.event(tracing.COMPUTE_ENDS)
        seconds = time.monotonic() - began
        running.check()
        running.reach("before-write")
        return StageOutput((self.store.put(self.outputs(task)[0], tokens_bytes(handle.result())),), seconds)

    def follow(self, task: GenerateTask, objects: tuple[ObjectRef, ...]) -> tuple[Message, ...]:
        """See `StageHandler`."""
        return (task.next(objects[0]),)

    def _check_given(self, given: tuple[int, ...]) -> None:
        if len(given) >= self._spec.tokens:
            raise InvalidInputError("given", f"has {len(given)} tokens, which leaves nothing to draw")
        if max(given, default=0) >= self._spec.codebook_size:
            raise InvalidInputError("given", f"the tokens of the model are below {self._spec.codebook_size}")

    def _submit(
        self,
        running: TaskContext[GenerateTask],
        request: GenerationRequest,
        events: "queue.SimpleQueue[Drawn | None]",
    ) -> GenerationHandle:
        """Hands the request to the engine; while that is full of calls, waits for room.

        That costs no attempt: it is not the work's fault.
        """
        while True:
            try:
                handle = self._engine.submit(request, events.put)
            except EngineFullError as error:
                until = time.monotonic() + error.retry_after
                while time.monotonic() < until:
                    running.check_begin()
                    time.sleep(LOOK_SECONDS)
            except EngineFailedError as error:
                # The engine had died before: this process is about to end, and the work has not been tried by it.
                running.wait_for_the_end()
                raise GiveBackError("the engine has stopped") from error
            else:
                handle.future.add_done_callback(lambda _: events.put(None))
                running.watched.on_cancel(handle.cancel)
                return handle

    def _follow_drawing(
        self,
        running: TaskContext[GenerateTask],
        handle: GenerationHandle,
        events: "queue.SimpleQueue[Drawn | None]",
    ) -> None:
        """Waits until all is drawn, and tells how far it is.

        Raises:
            EngineError: see `GenerationHandle.result`.
            GiveBackError: the worker stops, and it would take too long.
        """
        canvas = _Canvas(running.task, self._spec)
        told, rows = time.monotonic(), canvas.rows
        while True:
            try:
                drawn = events.get(timeout=LOOK_SECONDS)
            except queue.Empty:
                drawn = None
                if not handle.done:
                    self._check_time(running, canvas)
                    continue
            if drawn is None:
                handle.result()
                return
            canvas.lay(drawn)
            if canvas.rows > rows:
                rows = canvas.rows
                tracing.event("rows drawn", rows=rows)
            self._check_time(running, canvas)
            if time.monotonic() - told >= PROGRESS_SECONDS and canvas.rows:
                told = time.monotonic()
                self.publisher.offer(running.task.progress(canvas.rows, self._spec.side, canvas.last_row()))

    def _check_time(self, running: TaskContext[GenerateTask], canvas: "_Canvas") -> None:
        """Raises `GiveBackError` when the worker stops and the rest would not be drawn in time."""
        left = running.seconds_left()
        if left is None:
            return
        quanta = -(-canvas.missing // self._engine.batch.quantum)
        if canvas.waiting or quanta * self._engine.progress.quantum_seconds > left:
            raise GiveBackError("the worker stops")


class _Canvas:
    """What is drawn of a chunk."""

    def __init__(self, task: GenerateTask, spec: ModelSpec) -> None:
        self._columns = spec.side
        self._tokens: Int[np.ndarray, "candidates tokens"] = np.zeros(
            (len(task.candidates), spec.tokens), np.int32
        )
        self._given = len(task.given)
        self._tokens[:, : self._given] = task.given
        self._positions = np.full(len(task.candidates), self._given)

    @property
    def rows(self) -> int:
        """The rows that are laid in every picture."""
        return int(self._positions.min()) // self._columns

    @property
    def missing(self) -> int:
        """The tokens that are missing in the picture that is furthest behind."""
        return int(self._tokens.shape[1] - self._positions.min())

    @property
    def waiting(self) -> bool:
        """Whether a candidate has no slot yet."""
        return bool(self._positions.min() == self._given)

    def lay(self, drawn: Drawn) -> None:
        """Takes tokens from the engine."""
        end = drawn.start + len(drawn.tokens)
        self._tokens[drawn.candidate, drawn.start : end] = drawn.tokens
        self._positions[drawn.candidate] = end

    def last_row(self) -> tuple[tuple[int, ...], ...]:
        """Returns the last row that is laid in every picture; nothing where a row is too long for a message."""
        if self._columns > MAX_ROW_LENGTH:
            return ()
        end = self.rows * self._columns
        return tuple(tuple(row) for row in self._tokens[:, end - self._columns : end].tolist())
