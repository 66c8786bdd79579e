"""Generating the image tokens of a shard: the slots of the engine are fed from many prompts at once."""

import queue
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np

from smalti.batches import BatchPrompt
from smalti.engines.generator.engine import GeneratorEngine
from smalti.engines.generator.given import check_given, kept_by
from smalti.engines.generator.requests import Candidate, GenerationHandle, GenerationRequest, TokenRun
from smalti.errors import EngineFullError
from smalti.parameters import Priority
from smalti.shards.encodings import ShardEncodings
from smalti.shards.readings import PROMPT_ERRORS, Reading
from smalti.shards.tokens import ShardTokens

FILL: Final = 2
"""Candidates that are submitted for each slot, at least: while one is generated, the next one waits for its slot."""
POLL_SECONDS: Final = 0.1
"""Interval between checks while the engine is silent."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Piece:
    """Candidates of one prompt that are submitted together."""

    prompt: int
    """Position of the prompt in the shard."""
    first: int
    """Index of the first candidate."""
    request: GenerationRequest

    @property
    def size(self) -> int:
        return len(self.request.candidates)


def generate_shard(
    prompts: Sequence[BatchPrompt],
    encodings: ShardEncodings,
    engine: GeneratorEngine,
    *,
    codebook_size: int,
    slots: int | None = None,
    deadline: float | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    check: Callable[[int], None] = lambda left: None,
) -> ShardTokens:
    """Generates the tokens of all candidates of a shard.

    Candidates are submitted in the order of the prompts, at least twice as many as the engine has slots, so that a slot
    that becomes free is filled at once. A prompt over which the engine fails gets a problem, and the others go on.

    Args:
        prompts: the prompts.
        encodings: what the encoder has made of them.
        engine: the generator, which others may use at the same time.
        codebook_size: the number of different image tokens.
        slots: candidates that are submitted at the same time, at most; None for no limit.
        deadline: time of `time.monotonic` at which the engine drops what is not finished.
        on_progress: called with the candidates that are done and with all of them, whenever some are.
        check: called ten times a second with the candidates that are left; what it raises ends the shard.

    Raises:
        EngineError: the engine has failed, or the deadline has passed.
    """
    feed = _Feed(prompts, encodings, engine, codebook_size=codebook_size, slots=slots, deadline=deadline)
    try:
        while feed.submit():
            check(feed.total - feed.done)
            if feed.take():
                on_progress(feed.done, feed.total)
    finally:
        feed.cancel()  # Has no effect when everything is done.
    return ShardTokens(readings=tuple(feed.readings), tokens=tuple(feed.tokens))


class _Feed:
    """The candidates of a shard on their way through the engine."""

    def __init__(
        self,
        prompts: Sequence[BatchPrompt],
        encodings: ShardEncodings,
        engine: GeneratorEngine,
        *,
        codebook_size: int,
        slots: int | None,
        deadline: float | None,
    ) -> None:
        self._prompts = prompts
        self._encodings = encodings
        self._engine = engine
        self._codebook_size = codebook_size
        self._deadline = deadline
        self._limit = slots
        self.readings: list[Reading] = list(encodings.readings)
        self.tokens: list[np.ndarray | None] = [None] * len(prompts)
        drawn = [reading.problem is None for reading in self.readings]
        self.total = sum(
            prompt.candidates for prompt, is_drawn in zip(prompts, drawn, strict=True) if is_drawn
        )
        """Candidates that are to be generated."""
        self.done = 0
        """Those that are generated, or will not be."""
        self._pieces = self._cut()
        self._next: _Piece | None = next(self._pieces, None)
        self._open: dict[_Piece, GenerationHandle] = {}
        # A piece that has ended, or None for a candidate that is finished.
        self._ended: queue.SimpleQueue[_Piece | None] = queue.SimpleQueue()
        self._finished: dict[_Piece, int] = {}

    def submit(self) -> bool:
        """Submits as many pieces as fit; returns False when everything is done."""
        while self._next is not None:
            piece = self._next
            if self.readings[piece.prompt].problem is None:
                if not self._has_room(piece):
                    break
                try:
                    handle = self._engine.submit(piece.request, partial(self._receive, piece))
                except EngineFullError:  # Full of others' requests.
                    break
                self._open[piece] = handle
                handle.future.add_done_callback(lambda _, piece=piece: self._ended.put(piece))  # type: ignore[misc]
            else:
                self.done += piece.size
            self._next = next(self._pieces, None)
        return bool(self._open or self._next is not None)

    def take(self) -> bool:
        """Waits for a piece that has ended, for a moment; returns whether there was one."""
        try:
            piece = self._ended.get(timeout=POLL_SECONDS)
        except queue.Empty:
            return False
        if piece is None:
            return False
        handle = self._open.pop(piece)
        self._finished.pop(piece, None)
        self.done += piece.size
        if self.readings[piece.prompt].problem is not None:
            return True
        try:
            tokens = handle.result()
        except PROMPT_ERRORS as error:
            self._give_up(piece.prompt, str(error))
            return True
        if (whole := self.tokens[piece.prompt]) is None:
            shape = (self._prompts[piece.prompt].candidates, tokens.shape[1])
            self.tokens[piece.prompt] = whole = np.zeros(shape, np.int32)
        whole[piece.first : piece.first + piece.size] = tokens
        return True

    def _has_room(self, piece: _Piece) -> bool:
        running = sum(each.size - self._finished.get(each, 0) for each in self._open)
        if self._limit is not None:
            return not running or running + piece.size <= self._limit
        return running < FILL * self._engine.slots

    def _receive(self, piece: _Piece, run: TokenRun) -> None:
        """Counts finished candidates; on the engine's thread."""
        if run.start + len(run.tokens) == self._engine.batch.image_length:
            self._finished[piece] = self._finished.get(piece, 0) + 1
            self._ended.put(None)

    def cancel(self) -> None:
        """Cancels what runs."""
        for handle in self._open.values():
            handle.cancel()

    def _give_up(self, prompt: int, problem: str) -> None:
        """Gives a prompt a problem; what runs of it is cancelled, and its other candidates are not submitted."""
        self.readings[prompt] = self.readings[prompt].failed(problem)
        self.tokens[prompt] = None
        for piece, handle in self._open.items():
            if piece.prompt == prompt:
                handle.cancel()

    def _cut(self) -> Iterator[_Piece]:
        """Yields the candidates in pieces: as many as there are slots, or half of the limit."""
        largest = self._engine.slots if self._limit is None else max(1, self._limit // 2)
        for position, prompt in enumerate(self._prompts):
            if self.readings[position].problem is not None:
                continue
            length = self._engine.batch.image_length
            try:
                check_given(
                    prompt.given, prompt.strength, image_length=length, codebook_size=self._codebook_size
                )
            except PROMPT_ERRORS as error:
                self._give_up(position, str(error))
                self.done += prompt.candidates
                continue
            for first in range(0, prompt.candidates, largest):
                indices = range(first, min(first + largest, prompt.candidates))
                yield _Piece(prompt=position, first=first, request=self._request(position, indices))

    def _request(self, position: int, indices: range) -> GenerationRequest:
        prompt, reading = self._prompts[position], self.readings[position]
        texts = [reading.wording(index) or reading.prompt(prompt) for index in indices]
        places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        return GenerationRequest(
            encodings=tuple(self._encodings.encodings[text] for text in places),
            candidates=tuple(
                Candidate(
                    prompt.seed,
                    index,
                    prompt.sampling,
                    places[text],
                    kept_by(prompt.given, prompt.strength, prompt.seed, index),
                )
                for index, text in zip(indices, texts, strict=True)
            ),
            priority=Priority.BATCH,
            deadline=self._deadline,
        )
