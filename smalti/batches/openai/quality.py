"""The qualities of OpenAI's API: how many candidates are drawn, of which the best are returned; and of their files."""

from typing import Final, Literal

from smalti.errors import InvalidInputError

DEFAULT_COUNT: Final = 1
"""Number of pictures to return, if a request does not say it."""

Quality = Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"]

_NAMES: Final = {"auto": "medium", "standard": "medium", "hd": "high"}
"""Other names of qualities."""
_MULTIPLES: Final = {"low": 0, "medium": 1, "high": 2, "xhigh": 3, "max": 4}
"""How many times the default number of candidates is drawn, by quality; 0 draws only what is returned."""


def quality_name(asked: str | None) -> str:
    """Returns the name of a quality as answers have it."""
    return _NAMES.get(asked or "auto", asked or "auto")


def candidates_of(asked: str | None, n: int, default: int, limit: int) -> int | None:
    """Returns the number of candidates of a quality; None for that of the model.

    Args:
        asked: the quality; None if there is none.
        n: number of pictures to return; of these there are as many candidates at least.
        default: the model's number of candidates.
        limit: the most candidates; a greater n is left to others to refuse.
    """
    if asked in (None, "auto"):
        return None
    wanted = max(n, _MULTIPLES[quality_name(asked)] * default)
    return max(n, min(wanted, limit))


def file_quality(file_format: str, compression: int | None) -> int:
    """Returns the quality of files, from 0 to 100.

    Args:
        file_format: "png", "jpeg" or "webp".
        compression: the quality that is asked for; None for the best.

    Raises:
        InvalidInputError: PNG files would have to be compressed with loss.
    """
    quality = 100 if compression is None else compression
    if file_format == "png" and quality != 100:
        raise InvalidInputError(
            "output_compression", "must be 100 for png, which loses nothing; use jpeg or webp"
        )
    return quality
