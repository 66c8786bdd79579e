"""The image-token generator: encodings in, image tokens out, many requests in one batch.

A loop thread owns the batch. Between two dispatches it frees the slots of cancelled and expired requests and fills free
slots from the request queue, so that a new request never waits for an old one to finish. The host knows the position of
every slot, so only tokens are copied from the device.
"""

import atexit
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Int

from smalti.engines.encoding import Encoding
from smalti.engines.generator.batch import Batch, DecodeBatch
from smalti.engines.generator.batch_requests import BatchRequests
from smalti.engines.generator.partition import Partition
from smalti.engines.generator.requests import (
    Candidate,
    GenerationHandle,
    GenerationRequest,
    TokenCallback,
)
from smalti.engines.generator.scheduler import RequestQueue
from smalti.engines.generator.timing import LoopTiming
from smalti.errors import EngineFailedError, RequestCancelledError, RequestExpiredError
from smalti.models.bart import DalleBart
from smalti.registry.spec import ModelSpec

DEFAULT_SLOTS, DEFAULT_MAX_WAITING = 16, 1024
STALL_SECONDS = 120.0
HUNG_SECONDS = 10.0  # Time that `close` gives a loop that has stalled.

ProgressCallback = Callable[[int, int], None]
"""Called with the number of tokens generated so far and in total, over all candidates of a request."""


@runtime_checkable
class EngineObserver(Protocol):
    """Receives measurements of the engine."""

    def stepped(self, seconds: float, active: int, slots: int, tokens: int) -> None:
        """Called by the loop after every dispatch; must be quick.

        Args:
            seconds: duration of the dispatch.
            active: slots in use.
            slots: slots in total.
            tokens: image tokens that the dispatch generated.
        """
        ...


class GeneratorEngine:
    """Generates the tokens of candidates in a fixed number of slots, a fixed number of steps per dispatch.

    The same program runs for every request and always over all slots, so a candidate gets the same tokens alone and
    among others.
    """

    def __init__(
        self,
        batch: Batch,
        *,
        max_waiting: int = DEFAULT_MAX_WAITING,
        stall_seconds: float = STALL_SECONDS,
        eager: bool = True,
    ) -> None:
        """Takes ownership of a batch; `of` and `load` make one from a model.

        Args:
            batch: the batch; nothing else may use it from now on.
            max_waiting: limit of waiting candidates, beyond which `submit` raises.
            stall_seconds: the engine fails when its loop has work but makes no progress for this long. Must be longer
                than one dispatch; compilation does not count.
            eager: compile all programs before the first request; else, those that few requests need when one does.
        """
        self._eager = eager
        self.slots = batch.slots
        self.timing = LoopTiming()
        self.observer: EngineObserver | None = None
        """Notified of every dispatch; set it before the first one."""
        self._stall_seconds = stall_seconds
        self._queue = RequestQueue(max_waiting)
        self._requests = BatchRequests(batch, self._queue)
        self._cancelled: set[GenerationHandle] = set()
        self._open: set[GenerationHandle] = set()
        self._failure: BaseException | None = None
        self._closing = False
        self._wake = threading.Condition()
        self._threads: tuple[threading.Thread, ...] = ()
        self.ready = threading.Event()
        """Set once the programs are compiled."""

    @classmethod
    def of(
        cls,
        bart: DalleBart,
        unconditional: Encoding,
        *,
        slots: int = DEFAULT_SLOTS,
        steps_per_dispatch: int | None = None,
        dtype: DTypeLike | None = None,
        partition: Partition | None = None,
    ) -> "GeneratorEngine":
        """Makes the engine of a model in memory; `DecodeBatch` documents the arguments and errors."""
        batch = DecodeBatch(
            bart,
            unconditional,
            slots=slots,
            steps_per_dispatch=steps_per_dispatch,
            dtype=dtype,
            partition=partition,
        )
        return cls(batch)

    @classmethod
    def load(
        cls,
        spec: ModelSpec,
        unconditional: Encoding,
        *,
        slots: int = DEFAULT_SLOTS,
        max_waiting: int = DEFAULT_MAX_WAITING,
        stall_seconds: float = STALL_SECONDS,
        eager: bool = True,
    ) -> "GeneratorEngine":
        """Loads the engine of a model.

        Args:
            spec: the model.
            unconditional: encoding of the model's empty prompt.
            slots: number of candidates that are generated at the same time.
            max_waiting: limit of waiting candidates, beyond which `submit` raises.
            stall_seconds: time without progress after which the engine fails.
            eager: whether all programs are compiled before the first request.

        Raises:
            ModelError: a file of the model cannot be used.
        """
        batch = DecodeBatch.load(spec, unconditional, slots=slots)
        return cls(batch, max_waiting=max_waiting, stall_seconds=stall_seconds, eager=eager)

    @property
    def batch(self) -> Batch:
        """The batch."""
        return self._requests.batch

    @batch.setter
    def batch(self, batch: Batch) -> None:
        self._requests.batch = batch

    @property
    def healthy(self) -> bool:
        """Whether the engine serves requests; it does before `start`, too."""
        return self._failure is None

    @property
    def failure(self) -> BaseException | None:
        """Why the engine has stopped."""
        return self._failure

    @property
    def waiting(self) -> int:
        """Number of candidates without a slot."""
        return len(self._queue)

    @property
    def active(self) -> int:
        """Number of slots in use."""
        return self._requests.active

    def start(self) -> None:
        """Starts the loop, which first compiles the programs; `submit` calls this too."""
        with self._wake:
            if self._threads:
                return
            self._threads = (
                threading.Thread(target=self._run, name="generator", daemon=True),
                threading.Thread(target=self._watch, name="generator-watch", daemon=True),
            )
            for thread in self._threads:
                thread.start()
        # A thread that Python ends within JAX's C++ code aborts the process: "FATAL: exception not rethrown". Freeing
        # an array is such code too, and either thread may be the last that holds this engine.
        atexit.register(self.close)

    def submit(self, request: GenerationRequest, on_tokens: TokenCallback | None = None) -> GenerationHandle:
        """Queues a request; never blocks.

        Args:
            request: what to generate.
            on_tokens: called with tokens as they are generated; without it, `GenerationHandle.runs` yields them.

        Raises:
            EngineFullError: the queue is full.
            EngineFailedError: the engine has stopped.
        """
        handle = GenerationHandle(
            request, image_length=self.batch.image_length, cancel=self.cancel, on_tokens=on_tokens
        )
        if handle.done:
            return handle
        with self._wake:
            self._raise_if_stopped()
            self._queue.put(handle, self._seconds_until_room)
            if not self._open:
                self.timing.beat()  # The time without requests must not count as a stall.
            self._open.add(handle)
            handle.future.add_done_callback(lambda _: self._open.discard(handle))
            self._wake.notify_all()
        self.start()
        return handle

    def generate(
        self,
        encodings: Encoding | Sequence[Encoding],
        candidates: Sequence[Candidate],
        on_progress: ProgressCallback | None = None,
    ) -> Int[np.ndarray, "candidates tokens"]:
        """Generates the candidates of one prompt and waits for them; raises what `submit` and the handle raise.

        Args:
            encodings: encoding of the prompt, or encodings of its wordings.
            candidates: what to generate.
            on_progress: called after every dispatch for each candidate.
        """
        encodings = (encodings,) if isinstance(encodings, Encoding) else tuple(encodings)
        handle = self.submit(GenerationRequest(encodings=encodings, candidates=tuple(candidates)))
        length = self.batch.image_length
        done, total = 0, sum(length - each.start(length) for each in candidates)
        try:
            for run in handle.runs():
                done += len(run.tokens)
                if on_progress:
                    on_progress(done, total)
        finally:
            handle.cancel()  # In case the caller was interrupted; has no effect on a finished request.
        return handle.result()

    def cancel(self, handle: GenerationHandle) -> None:
        """Cancels a request; its slots are free after the current dispatch."""
        if handle.done:
            return
        with self._wake:
            self._cancelled.add(handle)
            self._wake.notify_all()
        handle.fail(RequestCancelledError("the request was cancelled"))

    def fail(self, error: Exception) -> None:
        """Stops the engine for a reason outside it; unfinished requests fail, whatever the loop waits for."""
        self._stop_for(error)

    def close(self) -> None:
        """Stops the loop after the current dispatch; unfinished requests fail."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        for thread in self._threads:
            thread.join(None if self._failure is None else HUNG_SECONDS)
        atexit.unregister(self.close)
        self._fail_everything("the engine was closed")

    def _run(self) -> None:
        """The loop thread."""
        try:
            self.batch.warm_up(everything=self._eager)
            self.timing.beat()
            self.ready.set()
            while self._wait_for_work():
                self._drop_unwanted()
                self._requests.admit()
                if self._requests.active:
                    self._step()
                self.timing.beat()
        except BaseException as error:
            self._stop_for(error)

    def _step(self) -> None:
        """Makes one dispatch."""
        active, began = self._requests.active, time.monotonic()
        count = self._requests.step()
        if count is None:
            return
        seconds = time.monotonic() - began
        self.timing.record(seconds)
        if self.observer is not None:
            self.observer.stepped(seconds, active, self.slots, count)

    def _wait_for_work(self) -> bool:
        """Waits until there is something to do; returns False when the engine is closing."""
        with self._wake:
            self._wake.wait_for(
                lambda: self._closing or self._requests.busy or len(self._queue) or self._cancelled
            )
            self.timing.beat()
            return not self._is_over()

    def _drop_unwanted(self) -> None:
        """Frees the slots and queue entries of cancelled and expired requests."""
        now = time.monotonic()
        with self._wake:
            cancelled, self._cancelled = self._cancelled, set()

        def unwanted(handle: GenerationHandle) -> bool:
            deadline = handle.request.deadline
            return handle in cancelled or (deadline is not None and deadline <= now)

        for handle in {*self._requests.drop(unwanted), *self._queue.remove(unwanted)}:
            handle.fail(RequestExpiredError("the deadline passed before the request was finished"))

    def _watch(self) -> None:
        """Detects a loop that hangs; runs on a separate thread."""
        with self._wake:
            while not self._wake.wait_for(self._is_over, self._stall_seconds / 4):
                still = time.monotonic() - self.timing.last_beat
                if self.ready.is_set() and self._open and still > self._stall_seconds:
                    break
            else:
                return
        self._stop_for(TimeoutError(f"the generator has made no progress for {still:.0f} s"))

    def _is_over(self) -> bool:
        return self._closing or self._failure is not None

    def _stop_for(self, error: BaseException) -> None:
        """Marks the engine as failed and fails every open request with the cause."""
        with self._wake:
            if self._failure is None:
                self._failure = error
            self._wake.notify_all()
        self._fail_everything(f"the generator has stopped: {error!r}", error)

    def _fail_everything(self, problem: str, cause: BaseException | None = None) -> None:
        self._queue.remove(lambda _: True)
        for handle in list(self._open):
            failed = EngineFailedError(problem, begun=handle.begun)
            failed.__cause__ = cause
            handle.fail(failed)

    def _raise_if_stopped(self) -> None:
        if self._failure is not None:
            problem = f"the generator has stopped: {self._failure!r}"
            raise EngineFailedError(problem, begun=False) from self._failure
        if self._closing:
            raise EngineFailedError("the engine was closed", begun=False)

    def _seconds_until_room(self, waiting: int) -> float:
        dispatches = -(-self.batch.image_length // self.batch.steps_per_dispatch)
        return max(1.0, waiting / self.slots * dispatches * self.timing.dispatch_seconds)
