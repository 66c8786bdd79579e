"""Generated candidates of many prompts, with the ranker's scores."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from smalti.engines.generator.requests import GenerationHandle
from smalti.parameters import SamplingParameters
from smalti.pipeline import Pipeline
from smalti.selection import choose
from smalti.training.evaluation.questions import Question

_QUEUED_CANDIDATES = 512
"""Number of candidates that are submitted to the generator ahead of time."""


@dataclass(frozen=True)
class RankedCandidates:
    """The generated candidates of one prompt, with the ranker's scores."""

    question: Question
    tokens: Int[np.ndarray, "candidates tokens"]
    pixels: UInt8[np.ndarray, "candidates side side 3"]
    scores: Float[np.ndarray, " candidates"]
    features: Float[np.ndarray, "candidates features"]
    """What the pictures look like to the ranker."""

    def order(self, diversity: float = 0.0) -> list[int]:
        """Returns all candidates in the order in which they are chosen as pictures; see `smalti.selection`."""
        return choose(self.scores, self.features, len(self.scores), diversity)


def generate_candidates(
    pipeline: Pipeline,
    asked: Sequence[Question],
    sampling: SamplingParameters,
    candidates: int,
    seeds: Sequence[int],
    *,
    vary: bool = False,
) -> Iterator[RankedCandidates]:
    """Generates the candidates of many prompts and yields them in order; prompts are submitted ahead of time.

    Args:
        pipeline: the model.
        asked: the prompts, in words that the model knows.
        sampling: sampling values.
        candidates: number of candidates of each prompt.
        seeds: seed of each prompt; `smalti generate` gives the same pictures with it.
        vary: whether candidates differ in what the prompt leaves open.
    """
    waiting: deque[tuple[Question, GenerationHandle]] = deque()
    ahead = max(_QUEUED_CANDIDATES // candidates, 1)
    for start, question in enumerate(asked):
        request, _ = pipeline.request(
            question.prompt, range(candidates), seed=seeds[start], sampling=sampling, vary=vary
        )
        waiting.append((question, pipeline.generator.submit(request)))
        if len(waiting) > ahead:
            yield _finish(pipeline, *waiting.popleft())
    while waiting:
        yield _finish(pipeline, *waiting.popleft())


def _finish(pipeline: Pipeline, question: Question, handle: GenerationHandle) -> RankedCandidates:
    tokens = handle.result()
    pixels = pipeline.decoder.decode(tokens)
    ranking = pipeline.ranker.look(question.prompt, [Image.fromarray(picture) for picture in pixels])
    return RankedCandidates(question, tokens, pixels, ranking.scores, ranking.features)
