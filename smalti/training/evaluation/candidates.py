"""Generated candidates of many prompts, with the ranker's scores."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from smalti.engines.generator.requests import Candidate, GenerationHandle, GenerationRequest
from smalti.parameters import SamplingParameters
from smalti.pipeline import Pipeline
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


def generate_candidates(
    pipeline: Pipeline,
    asked: Sequence[Question],
    sampling: SamplingParameters,
    candidates: int,
    seeds: Sequence[int],
) -> Iterator[RankedCandidates]:
    """Generates the candidates of many prompts and yields them in order; prompts are submitted ahead of time.

    Args:
        pipeline: the model.
        asked: the prompts, in words that the model knows.
        sampling: sampling values.
        candidates: number of candidates of each prompt.
        seeds: seed of each prompt; `smalti generate` gives the same pictures with it.
    """
    waiting: deque[tuple[Question, GenerationHandle]] = deque()
    ahead = max(_QUEUED_CANDIDATES // candidates, 1)
    for start, question in enumerate(asked):
        wanted = tuple(Candidate(seeds[start], index, sampling) for index in range(candidates))
        request = GenerationRequest(encoding=pipeline.encoder.encode(question.prompt), candidates=wanted)
        waiting.append((question, pipeline.generator.submit(request)))
        if len(waiting) > ahead:
            yield _finish(pipeline, *waiting.popleft())
    while waiting:
        yield _finish(pipeline, *waiting.popleft())


def _finish(pipeline: Pipeline, question: Question, handle: GenerationHandle) -> RankedCandidates:
    tokens = handle.result()
    pixels = pipeline.decoder.decode(tokens)
    scores = pipeline.ranker.rank(question.prompt, [Image.fromarray(picture) for picture in pixels])
    return RankedCandidates(question, tokens, pixels, scores)
