"""The four stages as a test plays them: they write the objects and send the events of real ones, computing nothing."""

from collections.abc import Callable, Iterator

import numpy as np
from safetensors.numpy import save

from smalti.messages import (
    DecodeTask,
    EncodeTask,
    GenerateTask,
    Message,
    Progress,
    PromptReading,
    RankTask,
    StageDone,
)
from smalti.results import ScoredPicture, ScoresFile
from smalti.storage import ObjectStore

SIDE = 8
"""The width of a picture in pixels, of which it has none."""


def rising(index: int) -> float:
    """The score of a candidate: the last one is the best."""
    return index / 1000


class FakeStages:
    """Does the work of the stages in a store, at once."""

    def __init__(self, store: ObjectStore, tokens: int, score: Callable[[int], float] = rising) -> None:
        """Takes what it works with.

        Args:
            store: where objects are written.
            tokens: the image tokens of a picture.
            score: the score of a candidate by its index.
        """
        self.store = store
        self.tokens = tokens
        self.score = score
        self.picture: Callable[[int, int], bytes] = picture_bytes
        """Makes the file of a candidate, from seed and index."""

    def encode(self, task: EncodeTask) -> tuple[tuple[GenerateTask, ...], StageDone]:
        """Encodes a prompt; returns what follows, and the event."""
        ref = self.store.put(task.keys.encoding, f"encoding of {task.prompt}".encode())
        reading = PromptReading(effective_prompt=task.prompt, cut=False)
        return task.next(ref, task.prompt), task.done(ref, reading=reading)

    def draw_rows(self, task: GenerateTask, rows: int) -> Progress:
        """Returns the event that says that so many rows are laid of a chunk."""
        side = round(self.tokens**0.5)
        last = tuple(tuple(self._token(index) for _ in range(side)) for index in task.candidates)
        return task.progress(rows, side, last)

    def generate(self, task: GenerateTask) -> tuple[DecodeTask, StageDone]:
        """Draws a chunk: every token of a candidate is its index, below 16."""
        tokens = np.array([[self._token(index)] * self.tokens for index in task.candidates], np.int32)
        tokens[:, : len(task.given)] = task.given
        ref = self.store.put(task.keys.tokens(task.chunk), save({"tokens": tokens}))
        return task.next(ref), task.done(ref)

    def decode(self, task: DecodeTask) -> tuple[RankTask, StageDone]:
        """Makes the files of a chunk's candidates."""
        refs = tuple(
            self.store.put(
                task.keys.candidate(index), self.picture(task.seed, index), content_type="image/png"
            )
            for index in task.candidates
        )
        return task.next(refs), task.done(*refs)

    def rank(self, task: RankTask) -> StageDone:
        """Scores a chunk."""
        scores = ScoresFile(
            pictures=tuple(
                ScoredPicture(
                    index=index,
                    score=self.score(index),
                    sha256=ref.sha256,
                    size=len(self.picture(task.seed, index)),
                    width=SIDE,
                    height=SIDE,
                )
                for index, ref in zip(task.candidates, task.pictures, strict=True)
            )
        )
        return task.done(self.store.put(task.keys.scores(task.chunk), scores.to_bytes()))

    def run(self, task: EncodeTask) -> Iterator[Message]:
        """Does all that a message asks for; yields the events in the order in which they are sent."""
        generates, encoded = self.encode(task)
        yield encoded
        for generate in generates:
            decode, drawn = self.generate(generate)
            yield drawn
            rank, decoded = self.decode(decode)
            yield decoded
            yield self.rank(rank)

    def _token(self, index: int) -> int:
        return index % 16


def picture_bytes(seed: int, index: int) -> bytes:
    """Returns the content of the file of a candidate."""
    return f"picture {index} of seed {seed}".encode()
