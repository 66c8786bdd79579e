"""Fake stages: they write the objects and return the messages of real ones, without computing anything."""

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float
from safetensors.numpy import save

from smalti.engines.generator.given import kept_by
from smalti.messages import (
    DecodeTask,
    EncodeTask,
    GenerateTask,
    Message,
    Progress,
    PromptReading,
    RankTask,
    RefineTask,
    StageDone,
    StageTask,
)
from smalti.parameters import FREE
from smalti.results import RankedPicture, ScoresFile, pack_features
from smalti.storage import ObjectRef, ObjectStore

SIDE = 8
"""The width and height that are reported of pictures, which have no pixels."""


def wording(prompt: str, index: int) -> str:
    """Returns what is encoded for a candidate of a varied job: one of two wordings."""
    return f"{prompt} in {'flat' if index % 2 else '3d'} style"


def one_look(index: int) -> Float[np.ndarray, " features"]:
    """Returns the features of a candidate; all pictures look the same."""
    return np.ones(1, np.float32)


def rising(index: int) -> float:
    """Returns a score that rises with the index: the last candidate is the best."""
    return index / 1000


class FakeStages:
    """Does the work of all stages on an object store."""

    def __init__(self, store: ObjectStore, tokens: int, score: Callable[[int], float] = rising) -> None:
        """Creates the stages.

        Args:
            store: the store to which objects are written.
            tokens: the number of image tokens of a picture.
            score: returns the score of a candidate by its index.
        """
        self.store = store
        self.tokens = tokens
        self.score = score
        self.features: Callable[[int], Float[np.ndarray, " features"]] = one_look
        """Returns the features of a candidate by its index."""
        self.picture: Callable[[int, int], bytes] = picture_bytes
        """Returns the file of a candidate for a seed and an index."""

    def encode(self, task: EncodeTask) -> tuple[tuple[GenerateTask, ...], StageDone]:
        """Encodes a prompt; returns the next tasks and the event."""
        words = len(task.prompt.split())
        reading = PromptReading(effective_prompt=task.prompt, cut=False, text_tokens=words + 2)
        if not task.vary:
            ref = self._write(task, task.keys.encoding, f"encoding of {task.prompt}".encode())
            return task.next(ref, task.prompt), task.done(ref, reading=reading)
        wordings = {index: wording(task.prompt, index) for chunk in task.chunks for index in chunk.candidates}
        refs = {
            each: self._write(task, task.keys.encoding_of(each), f"encoding of {each}".encode())
            for each in dict.fromkeys(wordings.values())
        }
        encodings = {index: refs[each] for index, each in wordings.items()}
        return task.next(encodings, task.prompt), task.done(*refs.values(), reading=reading)

    def draw_rows(self, task: GenerateTask, rows: int) -> Progress:
        """Returns the progress event for a number of finished rows of a chunk."""
        side = round(self.tokens**0.5)
        last = tuple(tuple(self._token(index) for _ in range(side)) for index in task.candidates)
        return task.progress(rows, side, last)

    def generate(self, task: GenerateTask) -> tuple[DecodeTask, StageDone]:
        """Generates a chunk: every token of a candidate is its index modulo 16."""
        tokens = np.array([[self._token(index)] * self.tokens for index in task.candidates], np.int32)
        for candidate, row in zip(task.candidates, tokens, strict=True):
            kept = kept_by(task.given, task.strength, task.seed, candidate)
            row[: len(kept)] = [
                drawn if token == FREE else token for token, drawn in zip(kept, row, strict=False)
            ]
        ref = self._write(task, task.keys.tokens(task.chunk), save({"tokens": tokens}))
        return task.next(ref), task.done(ref)

    def decode(self, task: DecodeTask) -> tuple[RankTask, StageDone]:
        """Writes the files of the candidates of a chunk."""
        refs = tuple(
            self._write(
                task, task.keys.candidate(index), self.picture(task.seed, index), content_type="image/png"
            )
            for index in task.candidates
        )
        return task.next(refs), task.done(*refs)

    def rank(self, task: RankTask) -> StageDone:
        """Scores a chunk."""
        scores = ScoresFile(
            pictures=tuple(
                RankedPicture(
                    index=index,
                    score=self.score(index),
                    sha256=ref.sha256,
                    size=len(self.picture(task.seed, index)),
                    width=SIDE,
                    height=SIDE,
                    wording=wording(task.prompt, index) if task.vary else None,
                    features=pack_features(self.features(index)) if task.keep_features else None,
                )
                for index, ref in zip(task.candidates, task.pictures, strict=True)
            )
        )
        return task.done(self._write(task, task.keys.scores(task.chunk), scores.to_bytes()))

    def refine(self, task: RefineTask) -> StageDone:
        """Writes the refined files of chosen pictures."""
        refs = [
            self._write(
                task, task.keys.refined(each.candidate), refined_bytes(self.store.get(each.picture.key))
            )
            for each in task.pictures
        ]
        return task.done(*refs)

    def run(self, task: EncodeTask) -> Iterator[Message]:
        """Runs all stages from the encoder to the ranker for a task; yields the events in order."""
        generates, encoded = self.encode(task)
        yield encoded
        for generate in generates:
            decode, drawn = self.generate(generate)
            yield drawn
            rank, decoded = self.decode(decode)
            yield decoded
            yield self.rank(rank)

    def _write(self, task: StageTask, name: str, content: bytes, *, content_type: str = "") -> ObjectRef:
        return self.store.put(task.output_key(name, content), content, content_type=content_type)

    def _token(self, index: int) -> int:
        return index % 16


def refined_bytes(picture: bytes) -> bytes:
    """Returns the refined file of a picture."""
    return b"refined " + picture


def picture_bytes(seed: int, index: int) -> bytes:
    """Returns the default file of a candidate."""
    return f"picture {index} of seed {seed}".encode()
