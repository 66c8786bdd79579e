"""Requests to the generator, and the handles that their callers wait on."""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from smalti.engines.encoding import Encoding
from smalti.engines.generator.given import start_after
from smalti.errors import EngineError
from smalti.parameters import Priority, SamplingParameters


@dataclass(frozen=True)
class Candidate:
    """One picture to generate: its random numbers follow from seed and index alone."""

    seed: int
    index: int
    sampling: SamplingParameters
    encoding: int = 0
    """Its encoding's place among those of the request."""
    given: tuple[int, ...] = ()
    """Its given tokens by position; `FREE` where one is generated, as it is after the last of them."""

    def start(self, image_length: int) -> int:
        """Returns the position at which its generation starts."""
        return start_after(self.given, image_length)


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """Candidates of one prompt, or of several wordings of it."""

    encodings: tuple[Encoding, ...]
    """The encodings of the wordings."""
    candidates: tuple[Candidate, ...]
    priority: Priority = Priority.INTERACTIVE
    deadline: float | None = None
    """Time of `time.monotonic` at which the request is dropped if it is not finished."""

    def by_encoding(self, indices: Sequence[int]) -> dict[int, list[int]]:
        """Groups indices of candidates by the encoding that they are generated from."""
        groups: dict[int, list[int]] = {}
        for index in indices:
            groups.setdefault(self.candidates[index].encoding, []).append(index)
        return groups


@dataclass(frozen=True)
class TokenRun:
    """Consecutive tokens of one candidate, from one dispatch."""

    candidate: int
    """Index among the candidates of the request."""
    start: int
    """Position of the first token in the picture."""
    tokens: Int[np.ndarray, " tokens"]


TokenCallback = Callable[[TokenRun], None]
"""Called with tokens as they are generated, on the engine's thread; it must not block."""


class GenerationHandle:
    """A request in progress. Every handle ends, with all tokens or with an error that states the reason."""

    def __init__(
        self,
        request: GenerationRequest,
        *,
        image_length: int,
        cancel: "Callable[[GenerationHandle], None]",
        on_tokens: TokenCallback | None = None,
    ) -> None:
        """Made by `GeneratorEngine.submit`.

        Args:
            request: the request.
            image_length: tokens per picture.
            cancel: cancels this handle in the engine.
            on_tokens: receives the tokens; without it, `runs` yields them.
        """
        self.request = request
        self.future: Future[Int[np.ndarray, "candidates tokens"]] = Future()
        """The finished tokens; `result` waits for it."""
        self.begun = False
        """Whether the engine has put it, or a part of it, into its batch."""
        self._cancel = cancel
        self._tokens = np.zeros((len(request.candidates), image_length), np.int32)
        starts = [candidate.start(image_length) for candidate in request.candidates]
        for tokens, candidate, start in zip(self._tokens, request.candidates, starts, strict=True):
            tokens[:start] = candidate.given[:start]
        self._missing = sum(image_length - start for start in starts)
        self._ends = starts
        self._events: queue.SimpleQueue[TokenRun | None] = queue.SimpleQueue()
        self._on_tokens = on_tokens or self._events.put
        # The loop delivers while another thread may fail the handle; it must end only once.
        self._lock = threading.Lock()
        self._finish_if_complete()

    def runs(self) -> Iterator[TokenRun]:
        """Yields tokens as they are generated, until the request is finished; can be iterated once.

        Raises:
            EngineError: the request was cancelled, has expired, or the engine has failed.
        """
        while (run := self._events.get()) is not None:
            yield run
        self.result()

    def result(self, timeout: float | None = None) -> Int[np.ndarray, "candidates tokens"]:
        """Waits for the finished tokens, in the order of the request's candidates.

        Raises:
            EngineError: the request was cancelled, has expired, or the engine has failed.
            TimeoutError: the request is not finished in time; it continues.
        """
        return self.future.result(timeout)

    def cancel(self) -> None:
        """Cancels the request; its slots are free after the current dispatch."""
        self._cancel(self)

    @property
    def done(self) -> bool:
        """Whether the handle has ended, with tokens or with an error."""
        return self.future.done()

    def deliver(self, run: TokenRun) -> None:
        """Accepts tokens from the engine, which come in order for each candidate; ignores those that it has.

        A candidate begins again when a step with others has failed, and gets the same tokens.
        """
        with self._lock:
            known = self._ends[run.candidate] - run.start
            if self.done or known >= len(run.tokens):
                return
            if known > 0:
                run = TokenRun(run.candidate, run.start + known, run.tokens[known:])
            self._ends[run.candidate] = run.start + len(run.tokens)
            self._tokens[run.candidate, run.start : run.start + len(run.tokens)] = run.tokens
            self._missing -= len(run.tokens)
            self._on_tokens(run)
            self._finish_if_complete()

    def fail(self, error: EngineError) -> None:
        """Ends the handle with an error, unless it has ended already."""
        with self._lock:
            if not self.done:
                self.future.set_exception(error)
                self._events.put(None)

    def _finish_if_complete(self) -> None:
        if self._missing == 0:
            self.future.set_result(self._tokens)
            self._events.put(None)
