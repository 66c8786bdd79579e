"""The stage that generates image tokens: `jobs/<job>/tokens/<chunk>-<content>.safetensors`."""

import queue
import time
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from smalti.engines.encoding import Encoding
from smalti.engines.generator.engine import GeneratorEngine
from smalti.engines.generator.given import check_given, kept_by
from smalti.engines.generator.requests import (
    Candidate,
    GenerationHandle,
    GenerationRequest,
    TokenRun,
)
from smalti.errors import EngineFullError, InvalidInputError
from smalti.messages import GenerateTask, Message, Stage
from smalti.queue import GiveBackError
from smalti.registry.spec import ModelSpec
from smalti.service import Process
from smalti.service.cancellation import Cancellations
from smalti.service.objects import load_encoding, tokens_bytes
from smalti.service.stage import StageHandler, StageOutput, TaskContext
from smalti.storage import ObjectRef
from smalti.telemetry import tracing

PROGRESS_SECONDS = 0.2
"""Minimum interval between progress events of a chunk."""
POLL_SECONDS = 0.1
"""Interval between checks whether the worker stops, while the engine is silent."""
MAX_ROW_LENGTH = 64
"""Tokens of a row that an event can hold."""
MAX_EVENT_TOKENS = 4096
"""Tokens in a progress event, over all candidates; a message of the queues has at most 64 KiB."""


class GenerateHandler(StageHandler[GenerateTask, tuple[Encoding, ...]]):
    """Generates the tokens of a chunk."""

    stage = Stage.GENERATE

    def __init__(
        self,
        *,
        process: Process,
        spec: ModelSpec,
        cancellations: Cancellations,
        engine: GeneratorEngine,
    ) -> None:
        """Adds the generator to what every stage needs.

        Args:
            process: provides the store, the publisher and the settings.
            spec: the loaded model and its sizes.
            cancellations: tells which jobs were cancelled; closed with the handler.
            engine: the generator, which gRPC calls use as well.
        """
        super().__init__(process=process, folder=spec.folder, cancellations=cancellations)
        self._spec = spec
        self._engine = engine

    def output_names(self, task: GenerateTask) -> tuple[str, ...]:  # noqa: D102
        return (task.keys.tokens(task.chunk),)

    def load(self, task: GenerateTask) -> tuple[Encoding, ...]:
        """Loads the encodings that the candidates are generated from, each once."""
        if task.adapters:
            raise InvalidInputError("adapters", "are not supported by this generator; leave them out")
        check_given(
            task.given,
            task.strength,
            image_length=self._spec.tokens,
            codebook_size=self._spec.codebook_size,
        )
        return tuple(
            self.store_executor.map(lambda ref: load_encoding(self.store, ref, self._spec), _distinct(task))
        )

    def run(  # noqa: D102
        self, context: TaskContext[GenerateTask], inputs: tuple[Encoding, ...]
    ) -> StageOutput:
        task = context.task
        context.reach("after-read")
        context.check_begin()
        request = GenerationRequest(
            encodings=inputs,
            candidates=_candidates(task),
            priority=task.priority,
            deadline=time.monotonic() + task.late_at - time.time(),
        )
        events: queue.SimpleQueue[TokenRun | None] = queue.SimpleQueue()
        began = time.monotonic()
        handle = self._submit(context, request, events)
        tracing.event(tracing.COMPUTE_BEGINS)
        try:
            self._wait_for_tokens(context, handle, events)
        finally:
            handle.cancel()  # Has no effect on a finished request.
            tracing.event(tracing.COMPUTE_ENDS)
        seconds = time.monotonic() - began
        context.check()
        context.reach("before-write")
        tokens = self.write(task, task.keys.tokens(task.chunk), tokens_bytes(handle.result()))
        return StageOutput((tokens,), seconds)

    def next_tasks(  # noqa: D102
        self, context: TaskContext[GenerateTask], objects: tuple[ObjectRef, ...]
    ) -> tuple[Message, ...]:
        return (context.task.next(objects[0]),)

    def _submit(
        self,
        context: TaskContext[GenerateTask],
        request: GenerationRequest,
        events: "queue.SimpleQueue[TokenRun | None]",
    ) -> GenerationHandle:
        """Submits the request to the engine; waits while the engine's queue is full of calls.

        Waiting does not count as an attempt, because the task is not at fault.
        """
        while True:
            try:
                handle = self._engine.submit(request, events.put)
            except EngineFullError as error:
                until = time.monotonic() + error.retry_after
                while time.monotonic() < until:
                    context.check_begin()
                    time.sleep(POLL_SECONDS)
            else:
                handle.future.add_done_callback(lambda _: events.put(None))
                context.cancellation.on_cancel(handle.cancel)
                return handle

    def _wait_for_tokens(
        self,
        context: TaskContext[GenerateTask],
        handle: GenerationHandle,
        events: "queue.SimpleQueue[TokenRun | None]",
    ) -> None:
        """Waits until all tokens are generated, and sends progress events.

        Raises:
            EngineError: see `GenerationHandle.result`.
            GiveBackError: the worker stops, and the rest would take too long.
        """
        tokens = _ChunkTokens(handle.request.candidates, self._spec)
        sent, rows = time.monotonic(), tokens.rows
        told = rows
        while True:
            try:
                drawn = events.get(timeout=POLL_SECONDS)
            except queue.Empty:
                drawn = None
                if not handle.done:
                    self._check_time(context, tokens)
                    continue
            if drawn is None:
                handle.result()
                return
            tokens.add(drawn)
            if tokens.rows > rows:
                rows = tokens.rows
                tracing.event("rows drawn", rows=rows)
            self._check_time(context, tokens)
            if time.monotonic() - sent >= PROGRESS_SECONDS and tokens.rows:
                sent = time.monotonic()
                # What the publisher does not take is in the next event.
                if self.publisher.offer(
                    context.task.progress(tokens.rows, self._spec.side, tokens.rows_from(told))
                ):
                    told = tokens.rows

    def _check_time(self, context: TaskContext[GenerateTask], tokens: "_ChunkTokens") -> None:
        """Raises `GiveBackError` if the worker stops and the rest would not be generated in time."""
        left = context.seconds_left()
        if left is None:
            return
        dispatches = -(-tokens.missing // self._engine.batch.steps_per_dispatch)
        if tokens.waiting or dispatches * self._engine.timing.dispatch_seconds > left:
            raise GiveBackError("the worker stops")


def _distinct(task: GenerateTask) -> list[ObjectRef]:
    """Returns the references to the encodings of a task, each once."""
    return list({ref.key: ref for ref in task.encoding_refs}.values())


def _candidates(task: GenerateTask) -> tuple[Candidate, ...]:
    """Returns the candidates of a task, each with its encoding's place among the distinct ones."""
    places = {ref.key: place for place, ref in enumerate(_distinct(task))}
    refs = task.encodings or task.encoding_refs * len(task.candidates)
    return tuple(
        Candidate(
            task.seed,
            index,
            task.sampling,
            places[ref.key],
            kept_by(task.given, task.strength, task.seed, index),
        )
        for index, ref in zip(task.candidates, refs, strict=True)
    )


class _ChunkTokens:
    """The tokens of a chunk, as far as they are generated."""

    def __init__(self, candidates: Sequence[Candidate], spec: ModelSpec) -> None:
        self._columns = spec.side
        self._tokens: Int[np.ndarray, "candidates tokens"] = np.zeros(
            (len(candidates), spec.tokens), np.int32
        )
        self._starts = np.array([candidate.start(spec.tokens) for candidate in candidates])
        for tokens, candidate, start in zip(self._tokens, candidates, self._starts, strict=True):
            tokens[:start] = candidate.given[:start]
        self._positions = self._starts.copy()

    @property
    def rows(self) -> int:
        """Number of rows that every candidate has."""
        return int(self._positions.min()) // self._columns

    @property
    def missing(self) -> int:
        """Number of tokens that the slowest candidate lacks."""
        return int(self._tokens.shape[1] - self._positions.min())

    @property
    def waiting(self) -> bool:
        """Whether a candidate still waits for a slot."""
        return bool((self._positions == self._starts).any())

    def add(self, drawn: TokenRun) -> None:
        """Adds tokens from the engine."""
        end = drawn.start + len(drawn.tokens)
        self._tokens[drawn.candidate, drawn.start : end] = drawn.tokens
        self._positions[drawn.candidate] = end

    def rows_from(self, first: int) -> tuple[tuple[int, ...], ...]:
        """Returns the rows that every candidate has, from a row on: as many of the last as an event can hold."""
        if self._columns > MAX_ROW_LENGTH:
            return ()
        first = max(first, self.rows - MAX_EVENT_TOKENS // (len(self._tokens) * self._columns))
        chosen = self._tokens[:, first * self._columns : self.rows * self._columns]
        return tuple(tuple(tokens) for tokens in chosen.tolist())
