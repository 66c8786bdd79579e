"""Given tokens: those of a picture of which a part is kept, with `FREE` at the positions that are drawn."""

import hashlib
import math
from collections.abc import Sequence

import numpy as np

from smalti.errors import InvalidInputError
from smalti.parameters import FREE


def start_after(given: Sequence[int], image_length: int) -> int:
    """Returns the position at which a picture with given tokens starts.

    Given tokens at the beginning are computed all at once, which takes about as long as one row of tiles. If they do
    not fill a row, and others follow further on, all are placed one by one.
    """
    beginning = next((place for place, token in enumerate(given) if token == FREE), len(given))
    return beginning if beginning == len(given) or beginning >= math.isqrt(image_length) else 0


def check_given(
    given: Sequence[int], strength: float | None, *, image_length: int, codebook_size: int
) -> None:
    """Checks given tokens against the sizes of a model.

    Args:
        given: the given tokens.
        strength: share of them that is drawn anew; None for none.
        image_length: tokens of a picture.
        codebook_size: number of different tokens.

    Raises:
        InvalidInputError: they do not fit.
    """
    if strength is not None and len(given) != image_length:
        raise InvalidInputError(
            "given", f"has {len(given)} tokens; with strength, it must have {image_length}"
        )
    is_whole = len(given) == image_length and FREE not in given and strength is None
    if len(given) > image_length or is_whole:
        raise InvalidInputError(
            "given", f"has {len(given)} tokens; of the {image_length} of a picture, one must be left to draw"
        )
    if max(given, default=0) >= codebook_size:
        raise InvalidInputError(
            "given", f"has a token outside the model's codebook; tokens must be below {codebook_size}"
        )


def kept_by(tokens: Sequence[int], strength: float | None, seed: int, candidate: int) -> tuple[int, ...]:
    """Returns the given tokens of one candidate.

    Which tokens a variation draws anew follows from the seed and the candidate. What one strength draws anew, a greater
    one draws anew as well.

    Args:
        tokens: the given tokens of all candidates; with a strength, those of a whole picture.
        strength: share of the tokens that is drawn anew; at least one is, and at least one is kept. None keeps all.
        seed: the seed.
        candidate: index of the candidate.
    """
    if strength is None:
        return tuple(tokens)
    count = len(tokens)
    # Not the random numbers that sample the tokens: whether a position is drawn must not decide what is drawn there.
    digest = hashlib.shake_128(f"variation {seed} {candidate}".encode()).digest(8 * count)
    order = np.argsort(np.frombuffer(digest, ">u8"), kind="stable")
    drawn = set(order[: min(max(round(strength * count), 1), count - 1)].tolist())
    return tuple(FREE if place in drawn else int(token) for place, token in enumerate(tokens))


def without_tiles(tokens: Sequence[int], tiles: Sequence[int], *, field: str) -> tuple[int, ...]:
    """Returns the tokens of a picture with `FREE` in place of those of tiles that are drawn anew.

    Args:
        tokens: the tokens of a whole picture.
        tiles: the positions of the tiles.
        field: the path of the tiles in the request, for errors.

    Raises:
        InvalidInputError: a position is out of range or out of order, or no tile is kept; names the field.
    """
    for place, tile in enumerate(tiles):
        if not 0 <= tile < len(tokens):
            raise InvalidInputError(f"{field}[{place}]", f"{tile} is not between 0 and {len(tokens) - 1}")
        if place and tile <= tiles[place - 1]:
            raise InvalidInputError(f"{field}[{place}]", "tiles must be in ascending order, each once")
    if len(tiles) == len(tokens):
        raise InvalidInputError(field, "has every tile; leave out the picture to draw all of it anew")
    drawn = set(tiles)
    return tuple(FREE if place in drawn else int(token) for place, token in enumerate(tokens))
