"""The second pass of the chosen pictures of a shard."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from smalti.engines.refiner import RefinerInput
from smalti.parameters import SecondPass
from smalti.pictures import png_bytes, read_drawing
from smalti.shards.encodings import ShardEncodings
from smalti.shards.pictures import CandidatePicture, DrawnPrompt
from smalti.shards.readings import PROMPT_ERRORS, OnPrompt
from smalti.shards.tokens import ShardTokens

Refine = Callable[[Sequence[RefinerInput], SecondPass, int], UInt8[np.ndarray, "pictures height width 3"]]


def refine_shard(
    drawn: Iterable[DrawnPrompt],
    tokens: ShardTokens,
    encodings: ShardEncodings,
    refine: Refine,
    *,
    refiner: str | None,
    batch_size: int,
    on_prompt: OnPrompt = lambda prompt: None,
) -> Iterator[DrawnPrompt]:
    """Yields the prompts of a shard with their pictures after the second pass, where one is asked for.

    A prompt over which the refiner fails gets a problem, and the others go on.

    Args:
        drawn: the prompts with the chosen pictures.
        tokens: what the generator has made of all prompts of the shard.
        encodings: what the encoder has made of them.
        refine: returns up to `batch_size` pictures after a second pass, with a seed.
        refiner: revision of the model's refiner; None if it has none.
        batch_size: pictures in a batch of the refiner.
        on_prompt: called before each prompt.
    """
    for each, rows in zip(drawn, tokens.tokens, strict=True):
        on_prompt(each.prompt)
        second_pass = each.prompt.second_pass
        if second_pass is None or rows is None or not each.pictures:
            yield each
            continue
        read = [read_drawing(picture.content) for picture in each.pictures]
        inputs = [
            RefinerInput(
                pixels=np.asarray(image),
                candidate=picture.candidate,
                tokens=rows[picture.candidate],
                encoding=encodings.encodings[_text(each, picture)],
            )
            for picture, (image, _) in zip(each.pictures, read, strict=True)
        ]
        try:
            refined = [
                pixels
                for start in range(0, len(inputs), batch_size)
                for pixels in refine(inputs[start : start + batch_size], second_pass, each.prompt.seed)
            ]
        except PROMPT_ERRORS as error:
            yield each.failed(str(error))
            continue
        record = {"second_pass": second_pass, "refiner": refiner if second_pass.refine else None}
        yield replace(
            each,
            pictures=tuple(
                replace(
                    picture,
                    content=png_bytes(Image.fromarray(pixels), drawing.model_copy(update=record)),
                )
                for picture, (_, drawing), pixels in zip(each.pictures, read, refined, strict=True)
            ),
        )


def _text(drawn: DrawnPrompt, picture: CandidatePicture) -> str:
    return drawn.reading.wording(picture.candidate) or drawn.reading.prompt(drawn.prompt)
