"""A picture of which a part is kept, as given tokens for the generator."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from smalti.engines.decoder import DecoderEngine
from smalti.engines.generator.given import without_tiles
from smalti.errors import InvalidInputError, NotSupportedError
from smalti.files import load_content
from smalti.parameters import check_keep_rows, check_kept, check_strength
from smalti.pictures import Picture, masked_tiles, read_image, square


def given_tokens(
    decoder: DecoderEngine,
    source: bytes | Path | Picture | None,
    *,
    keep_rows: int | None,
    mask: bytes | Path | None,
    strength: float | None,
) -> tuple[int, ...]:
    """Returns the tokens of the part that is kept, by position, with `FREE` for those that no candidate keeps.

    Args:
        decoder: encodes the picture.
        source: the path or content of a file, or a picture of this model; None gives no tokens.
        keep_rows: number of rows of tiles to keep, from the top.
        mask: the path or content of a file; the tiles under its transparent part are drawn anew.
        strength: share of the tokens that is drawn anew later, by `kept_by`; all of them are returned.

    Raises:
        InvalidInputError: an argument is out of range or missing, or a file cannot be used; names the argument.
        NotSupportedError: the model cannot encode pictures.
    """
    ways = {"keep_rows": keep_rows, "mask": mask, "strength": strength}
    asked = [name for name, value in ways.items() if value is not None]
    if source is None:
        if asked:
            raise InvalidInputError("initial_image", f"is missing; {asked[0]} tells which part of it is kept")
        return ()
    check_kept(asked)
    config = decoder.vqgan.config
    side = round(config.tokens**0.5)
    if keep_rows is not None:
        check_keep_rows(keep_rows, side)
    if strength is not None:
        check_strength(strength)
    if isinstance(source, Picture):
        image, known = source.image, source.tokens
    else:
        image, known = read_image(load_content(source, "initial_image"), "initial_image"), None
    redrawn: Sequence[int] = ()
    if mask is not None:
        redrawn = masked_tiles(load_content(mask, "mask"), [image.size], side, "mask")
    tokens = _encode(decoder, image) if known is None else tuple(known.tolist())
    return without_tiles(tokens, redrawn, field="mask")[: keep_rows and keep_rows * side]


def _encode(decoder: DecoderEngine, image: Image.Image) -> tuple[int, ...]:
    if not decoder.vqgan.has_encoder:
        raise NotSupportedError("the model's VQGAN has no encoder, so it cannot encode pictures")
    pixels = np.asarray(square(image, decoder.vqgan.config.resolution))
    return tuple(decoder.encode(pixels[None])[0].tolist())
