"""What is asked of the generator, and what the asker holds in return."""

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from smalti.engines.encoding import Encoding
from smalti.errors import EngineError
from smalti.parameters import Priority, SamplingParameters


@dataclass(frozen=True)
class Candidate:
    """One picture to draw: its random numbers follow from seed and index alone."""

    seed: int
    index: int
    sampling: SamplingParameters


@dataclass(frozen=True)
class GenerationRequest:
    """Candidates of one prompt."""

    encoding: Encoding
    candidates: tuple[Candidate, ...]
    priority: Priority = Priority.INTERACTIVE
    deadline: float | None = None
    """On the clock of `time.monotonic`; what has not been drawn by then is dropped."""
    given: tuple[int, ...] = ()
    """Tokens of the first places, the same for all candidates: drawing goes on behind them."""


@dataclass(frozen=True)
class Drawn:
    """Tokens of one candidate, as they come out of one quantum."""

    candidate: int
    """Its place among the request's candidates."""
    start: int
    """The place of the first of the tokens in the picture."""
    tokens: Int[np.ndarray, " tokens"]


OnDrawn = Callable[[Drawn], None]
"""Is told of tokens as they are drawn, by the engine's thread, so it must not wait."""


class GenerationHandle:
    """A request on its way. Every handle ends: with all tokens, or with an error that says why not."""

    def __init__(
        self,
        request: GenerationRequest,
        cancel: "Callable[[GenerationHandle], None]",
        image_length: int,
        on_drawn: OnDrawn | None = None,
    ) -> None:
        """Is made by `GeneratorEngine.submit`; with `on_drawn`, `rows` has nothing to yield."""
        self.request = request
        self.future: Future[Int[np.ndarray, "candidates tokens"]] = Future()
        """The finished tokens, for those who would rather wait in another way than `result` does."""
        self._cancel = cancel
        self._tokens = np.zeros((len(request.candidates), image_length), np.int32)
        self._tokens[:, : len(request.given)] = request.given
        self._missing = len(request.candidates) * (image_length - len(request.given))
        self._events: queue.SimpleQueue[Drawn | None] = queue.SimpleQueue()
        self._on_drawn = on_drawn or self._events.put
        # The loop delivers and whoever finds it dead fails the handle: it must end once.
        self._lock = threading.Lock()
        self._finish_if_complete()

    def rows(self) -> Iterator[Drawn]:
        """Yields tokens as they are drawn, until all are there; to be read once.

        Raises:
            EngineError: the request was cancelled, has expired, or the engine has failed.
        """
        while (drawn := self._events.get()) is not None:
            yield drawn
        self.result()

    def result(self, timeout: float | None = None) -> Int[np.ndarray, "candidates tokens"]:
        """Waits for the finished tokens, in the order of the request's candidates.

        Raises:
            EngineError: the request was cancelled, has expired, or the engine has failed.
            TimeoutError: they are not there in time; the request goes on.
        """
        return self.future.result(timeout)

    def cancel(self) -> None:
        """Takes the request back; its slots are free within one quantum."""
        self._cancel(self)

    @property
    def done(self) -> bool:
        """Whether the handle has ended, well or not."""
        return self.future.done()

    def deliver(self, drawn: Drawn) -> None:
        """Takes tokens from the engine, in order for each candidate."""
        with self._lock:
            if self.done:
                return
            self._tokens[drawn.candidate, drawn.start : drawn.start + len(drawn.tokens)] = drawn.tokens
            self._missing -= len(drawn.tokens)
            self._on_drawn(drawn)
            self._finish_if_complete()

    def fail(self, error: EngineError) -> None:
        """Ends the handle with an error, if it has not ended."""
        with self._lock:
            if not self.done:
                self.future.set_exception(error)
                self._events.put(None)

    def _finish_if_complete(self) -> None:
        if self._missing == 0:
            self.future.set_result(self._tokens)
            self._events.put(None)
