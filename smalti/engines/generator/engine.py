"""The image-token generator: encodings in, image tokens out, many requests in one batch.

A loop thread owns the batch. Between two quanta it frees the slots of requests that nobody wants any more and fills
free slots from the waiting line, so that a new request never waits for an old one to finish. When a candidate is
finished follows from where it began, so nothing but the tokens has to come back from the device.
"""

import atexit
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Int

from smalti.engines.encoding import Encoding
from smalti.engines.generator.batch import Batch, DecodeBatch
from smalti.engines.generator.partition import Partition
from smalti.engines.generator.requests import Candidate, Drawn, GenerationHandle, GenerationRequest, OnDrawn
from smalti.engines.generator.scheduler import RequestQueue
from smalti.engines.generator.state import Prefix
from smalti.errors import EngineError, EngineFailedError, RequestCancelledError, RequestExpiredError
from smalti.models.bart import DalleBart
from smalti.registry.spec import ModelSpec

DEFAULT_SLOTS = 16
DEFAULT_WAITING = 1024
STALL_SECONDS = 120.0

RowsDrawn = Callable[[int, int], None]
"""Called with the tokens drawn so far and the tokens there will be, over all candidates of a request."""


@runtime_checkable
class EngineObserver(Protocol):
    """Told of what the engine does, for metrics."""

    def stepped(self, seconds: float, active: int, slots: int, tokens: int) -> None:
        """A quantum has been drawn; called by the loop, so it must be quick.

        Args:
            seconds: what it took.
            active: the slots that were in use.
            slots: the slots that there are.
            tokens: image tokens that came of it.
        """
        ...


@dataclass
class Slot:
    """What the loop knows of a slot that is in use."""

    handle: GenerationHandle
    candidate: int
    """The place among the request's candidates."""
    position: int
    """The place in the picture of the next token."""


@dataclass
class Progress:
    """What the loop last did, for those who watch it."""

    heartbeat: float = field(default_factory=time.monotonic)
    quantum_seconds: float = 0.0
    """The time of a quantum, smoothed."""

    def beat(self) -> None:
        """Says that the loop is alive."""
        self.heartbeat = time.monotonic()

    def took(self, seconds: float) -> None:
        """Notes the time of one quantum."""
        self.quantum_seconds = 0.8 * self.quantum_seconds + 0.2 * seconds if self.quantum_seconds else seconds


class GeneratorEngine:
    """Draws the tokens of candidates, in a fixed number of slots, a quantum at a time.

    The same program runs whatever a request asks for, and always over all slots, so that a candidate's tokens are the
    same alone and among others.
    """

    def __init__(
        self, batch: Batch, *, max_waiting: int = DEFAULT_WAITING, stall_seconds: float = STALL_SECONDS
    ) -> None:
        """Takes charge of a batch; `GeneratorEngine.of` makes one from a model.

        Args:
            batch: nobody else may use it from now on.
            max_waiting: candidates that may wait; past it `submit` raises.
            stall_seconds: a loop that has work and makes no progress for so long is given up. It must be longer than
                a quantum; the compilation of the programs does not count.
        """
        self.batch = batch
        self.slots = batch.slots
        self.progress = Progress()
        self.observer: EngineObserver | None = None
        """Told of every quantum, where it is set before the first one."""
        self._stall_seconds = stall_seconds
        self._line = RequestQueue(max_waiting)
        self._in_use: dict[int, Slot] = {}
        self._prefixes: dict[GenerationHandle, Prefix] = {}
        self._cancelled: set[GenerationHandle] = set()
        self._open: set[GenerationHandle] = set()
        self._failure: BaseException | None = None
        self._closing = False
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self.ready = threading.Event()
        """Set once the programs are compiled."""

    @classmethod
    def of(
        cls,
        bart: DalleBart,
        unconditional: Encoding,
        *,
        slots: int = DEFAULT_SLOTS,
        quantum: int | None = None,
        dtype: DTypeLike | None = None,
        partition: Partition | None = None,
    ) -> "GeneratorEngine":
        """Makes the engine of a model; see `DecodeBatch` for the arguments and what is raised."""
        return cls(
            DecodeBatch(bart, unconditional, slots=slots, quantum=quantum, dtype=dtype, partition=partition)
        )

    @classmethod
    def load(
        cls,
        spec: ModelSpec,
        unconditional: Encoding,
        *,
        slots: int = DEFAULT_SLOTS,
        max_waiting: int = DEFAULT_WAITING,
        stall_seconds: float = STALL_SECONDS,
    ) -> "GeneratorEngine":
        """Loads the engine of a model.

        Args:
            spec: the model's.
            unconditional: the encoding of its empty prompt.
            slots: how many candidates are drawn at the same time.
            max_waiting: see `GeneratorEngine`.
            stall_seconds: see `GeneratorEngine`.

        Raises:
            ModelError: a file of the model cannot be used.
        """
        # The generator arranges its half anew: loaded by itself, the original of it is free once that is done.
        half = DalleBart.load(spec.folder.bart_folder, part="decoder", on_host=True)
        batch = DecodeBatch(half, unconditional, slots=slots)
        return cls(batch, max_waiting=max_waiting, stall_seconds=stall_seconds)

    @property
    def healthy(self) -> bool:
        """Whether requests are drawn: the loop runs, or will at the first request."""
        return self._failure is None

    @property
    def failure(self) -> BaseException | None:
        """Why the engine has stopped."""
        return self._failure

    @property
    def waiting(self) -> int:
        """The candidates that have no slot yet."""
        return len(self._line)

    @property
    def active(self) -> int:
        """The slots in use."""
        return len(self._in_use)

    def start(self) -> None:
        """Starts the loop, which compiles the programs first; `submit` does it too."""
        with self._wake:
            if self._thread is not None:
                return
            self._thread = threading.Thread(target=self._run, name="generator", daemon=True)
            self._thread.start()
            threading.Thread(target=self._watch, name="generator-watch", daemon=True).start()
        # A daemon thread that computes while the interpreter ends would take the process down with it.
        atexit.register(self.close)

    def submit(self, request: GenerationRequest, on_drawn: OnDrawn | None = None) -> GenerationHandle:
        """Takes a request; never waits.

        Args:
            request: what to draw.
            on_drawn: see `GenerationHandle`.

        Raises:
            EngineFullError: the waiting line is full.
            EngineFailedError: the engine has stopped.
        """
        handle = GenerationHandle(request, self.cancel, self.batch.image_length, on_drawn)
        if handle.done:
            return handle
        with self._wake:
            self._raise_if_stopped()
            self._line.join(handle, self._seconds_until_room)
            if not self._open:
                self.progress.beat()  # Idleness is not the loop's, and does not count against it.
            self._open.add(handle)
            handle.future.add_done_callback(lambda _: self._open.discard(handle))
            self._wake.notify_all()
        self.start()
        return handle

    def generate(
        self, encoding: Encoding, candidates: Sequence[Candidate], rows_drawn: RowsDrawn | None = None
    ) -> Int[np.ndarray, "candidates tokens"]:
        """Draws the candidates of one prompt and waits for them; see `submit`.

        Args:
            encoding: the prompt's encoding.
            candidates: what to draw.
            rows_drawn: told of the progress.
        """
        handle = self.submit(GenerationRequest(encoding, tuple(candidates)))
        done, of = 0, len(candidates) * self.batch.image_length
        try:
            for drawn in handle.rows():
                done += len(drawn.tokens)
                if rows_drawn:
                    rows_drawn(done, of)
        finally:
            handle.cancel()  # Where the caller stopped on the way; it does nothing to a finished request.
        return handle.result()

    def cancel(self, handle: GenerationHandle) -> None:
        """Takes a request back; its slots are free within one quantum."""
        if handle.done:
            return
        with self._wake:
            self._cancelled.add(handle)
            self._wake.notify_all()
        handle.fail(RequestCancelledError("the request was cancelled"))

    def close(self) -> None:
        """Stops the loop after the quantum it is in; requests that are not finished fail."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        if self._thread is not None and self._failure is None:
            self._thread.join()
        atexit.unregister(self.close)
        self._fail_everything(EngineFailedError("the engine was closed"))

    def _run(self) -> None:
        """The loop."""
        try:
            self.batch.warm_up()
            self.progress.beat()
            self.ready.set()
            while self._wait_for_work():
                self._drop_unwanted()
                self._admit()
                if self._in_use:
                    began = time.monotonic()
                    drawn = self.batch.step()
                    seconds = time.monotonic() - began
                    self.progress.took(seconds)
                    active = len(self._in_use)
                    tokens = self._deliver(drawn)
                    if self.observer is not None:
                        self.observer.stepped(seconds, active, self.slots, tokens)
                self.progress.beat()
        except BaseException as error:
            self._stop_for(error)

    def _wait_for_work(self) -> bool:
        """Waits until there is something to do; returns False when the engine is closing."""
        with self._wake:
            self._wake.wait_for(lambda: self._closing or self._in_use or len(self._line) or self._cancelled)
            self.progress.beat()
            return not self._is_over()

    def _drop_unwanted(self) -> None:
        """Frees what belongs to requests that were cancelled or have expired."""
        now = time.monotonic()
        with self._wake:
            cancelled, self._cancelled = self._cancelled, set()

        def unwanted(handle: GenerationHandle) -> bool:
            deadline = handle.request.deadline
            return handle in cancelled or (deadline is not None and deadline <= now)

        freed = [slot for slot, held in self._in_use.items() if unwanted(held.handle)]
        gone = {self._in_use.pop(slot).handle for slot in freed} | set(self._line.leave(unwanted))
        if freed:
            self.batch.release(freed)
        for handle in gone:
            self._prefixes.pop(handle, None)
            handle.fail(RequestExpiredError("the time for the request ran out before it was drawn"))

    def _admit(self) -> None:
        """Fills free slots from the waiting line."""
        free = [slot for slot in range(self.slots) if slot not in self._in_use]
        for handle, places in self._line.take(len(free)):
            request = handle.request
            if handle not in self._prefixes:
                self._prefixes[handle] = self.batch.prefill(request.encoding)
            slots, free = free[: len(places)], free[len(places) :]
            candidates = [request.candidates[place] for place in places]
            self.batch.insert(self._prefixes[handle], slots, candidates, request.given)
            for slot, place in zip(slots, places, strict=True):
                self._in_use[slot] = Slot(handle, place, len(request.given))
            if places[-1] == len(request.candidates) - 1:
                del self._prefixes[handle]

    def _deliver(self, drawn: Int[np.ndarray, "slots quantum"]) -> int:
        """Hands the tokens of one quantum to their requests and frees the slots that are finished.

        Returns:
            How many tokens there were.
        """
        total = 0
        for slot, held in list(self._in_use.items()):
            tokens = drawn[slot, : self.batch.image_length - held.position]
            start = held.position
            held.position += len(tokens)
            total += len(tokens)
            if held.position == self.batch.image_length:
                del self._in_use[slot]
            held.handle.deliver(Drawn(held.candidate, start, tokens))
        return total

    def _watch(self) -> None:
        """Finds a loop that hangs: the thread that could say so is the one that cannot."""
        with self._wake:
            while not self._wake.wait_for(self._is_over, self._stall_seconds / 4):
                still = time.monotonic() - self.progress.heartbeat
                if self.ready.is_set() and self._open and still > self._stall_seconds:
                    break
            else:
                return
        self._stop_for(TimeoutError(f"the generator has made no progress for {still:.0f} s"))

    def _is_over(self) -> bool:
        return self._closing or self._failure is not None

    def _stop_for(self, error: BaseException) -> None:
        """Gives the engine up: from now on it is unhealthy and every request fails with the cause."""
        with self._wake:
            if self._failure is None:
                self._failure = error
            self._wake.notify_all()
        failed = EngineFailedError(f"the generator has stopped: {error!r}")
        failed.__cause__ = error
        self._fail_everything(failed)

    def _fail_everything(self, error: EngineError) -> None:
        self._line.leave(lambda _: True)
        for handle in list(self._open):
            handle.fail(error)

    def _raise_if_stopped(self) -> None:
        if self._failure is not None:
            raise EngineFailedError(f"the generator has stopped: {self._failure!r}") from self._failure
        if self._closing:
            raise EngineFailedError("the engine was closed")

    def _seconds_until_room(self, waiting: int) -> float:
        quanta = -(-self.batch.image_length // self.batch.quantum)
        return max(1.0, waiting / self.slots * quanta * self.progress.quantum_seconds)
