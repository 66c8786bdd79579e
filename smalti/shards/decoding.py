"""Decoding the tokens of a shard into pictures."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from smalti.batches import BatchPrompt
from smalti.parameters import SamplingParameters
from smalti.pictures import Drawing, png_bytes
from smalti.shards.pictures import CandidatePicture, DrawnPrompt
from smalti.shards.readings import PROMPT_ERRORS, OnPrompt, Reading
from smalti.shards.tokens import ShardTokens

Decode = Callable[[Int[np.ndarray, "pictures tokens"]], UInt8[np.ndarray, "pictures height width 3"]]


def decode_shard(
    prompts: Sequence[BatchPrompt],
    tokens: ShardTokens,
    decode: Decode,
    *,
    model: str,
    revision: str,
    batch_size: int,
    on_prompt: OnPrompt = lambda prompt: None,
) -> Iterator[DrawnPrompt]:
    """Yields the prompts of a shard with the pictures of all their candidates.

    A prompt over which the decoder fails gets a problem, and the others go on.

    Args:
        prompts: the prompts.
        tokens: what the generator has made of them.
        decode: returns the pictures of up to `batch_size` candidates.
        model: name of the model.
        revision: revision of the model.
        batch_size: pictures in a batch of the decoder.
        on_prompt: called before each prompt.
    """
    for prompt, reading, rows in zip(prompts, tokens.readings, tokens.tokens, strict=True):
        on_prompt(prompt)
        drawn = DrawnPrompt(prompt=prompt, reading=reading)
        if rows is not None:
            try:
                pixels = [
                    picture
                    for start in range(0, len(rows), batch_size)
                    for picture in decode(rows[start : start + batch_size])
                ]
            except PROMPT_ERRORS as error:
                drawn = drawn.failed(str(error))
            else:
                drawn = DrawnPrompt(
                    prompt=prompt,
                    reading=reading,
                    pictures=tuple(
                        CandidatePicture(
                            candidate=candidate,
                            content=_file(prompt, reading, candidate, picture, model, revision),
                        )
                        for candidate, picture in enumerate(pixels)
                    ),
                )
        yield drawn


def candidate_file(
    pixels: UInt8[np.ndarray, "height width 3"],
    *,
    prompt: str,
    effective_prompt: str,
    wording: str | None,
    seed: int,
    sampling: SamplingParameters,
    candidates: int,
    candidate: int,
    vary: bool,
    model: str,
    revision: str,
) -> bytes:
    """Returns the PNG file of a candidate with its record, which has no score yet.

    Args:
        pixels: the picture.
        prompt: the prompt.
        effective_prompt: the prompt in words that the model knows.
        wording: what was encoded for the candidate; None if it has no wording of its own.
        seed: the seed of all candidates.
        sampling: how tokens were sampled.
        candidates: number of candidates of the prompt.
        candidate: index of the candidate.
        vary: whether candidates differ in what the prompt leaves open.
        model: name of the model.
        revision: revision of the model.
    """
    drawing = Drawing(
        prompt=prompt,
        seed=seed,
        model=model,
        revision=revision,
        sampling=sampling,
        candidates=candidates,
        candidate=candidate,
        drawn=None if effective_prompt == prompt else effective_prompt,
        vary=vary,
        wording=wording,
    )
    return png_bytes(Image.fromarray(pixels), drawing)


def _file(
    prompt: BatchPrompt, reading: Reading, candidate: int, pixels: np.ndarray, model: str, revision: str
) -> bytes:
    return candidate_file(
        pixels,
        prompt=prompt.prompt,
        effective_prompt=reading.prompt(prompt),
        wording=reading.wording(candidate),
        seed=prompt.seed,
        sampling=prompt.sampling,
        candidates=prompt.candidates,
        candidate=candidate,
        vary=prompt.vary,
        model=model,
        revision=revision,
    )
