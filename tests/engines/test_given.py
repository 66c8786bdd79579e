"""Given tokens: which a candidate keeps, and where it starts."""

import pytest

from smalti.engines.generator.given import kept_by, start_after, without_tiles
from smalti.errors import InvalidInputError
from smalti.parameters import FREE

PICTURE = tuple(range(100, 356))


def drawn(strength: float, seed: int = 7, candidate: int = 3) -> set[int]:
    """Returns the positions that a variation draws anew."""
    return {place for place, token in enumerate(kept_by(PICTURE, strength, seed, candidate)) if token == FREE}


def test_variation_draws_its_share_anew() -> None:
    assert [len(drawn(strength)) for strength in (0.0001, 0.25, 0.5, 0.9999)] == [1, 64, 128, 255]
    kept = kept_by(PICTURE, 0.5, 7, 3)
    assert all(token in (FREE, PICTURE[place]) for place, token in enumerate(kept))
    assert kept_by(PICTURE, None, 7, 3) == PICTURE


def test_choice_follows_from_seed_and_candidate_and_grows_with_strength() -> None:
    assert drawn(0.25) == drawn(0.25)
    assert drawn(0.1) < drawn(0.25) < drawn(0.8)
    assert len({frozenset(drawn(0.25, seed, candidate)) for seed in range(4) for candidate in range(4)}) == 16
    # These values must never change: a job that is repeated later must give the same pictures.
    assert sorted(drawn(0.02)) == [9, 16, 166, 202, 218]


@pytest.mark.parametrize(
    ("given", "start"),
    [
        ((), 0),
        ((1, 2), 2),  # Only at the beginning: computed at once, however few.
        ((1,) * 16, 16),
        ((1, FREE, 2), 0),
        ((1, 1, 1, 1, FREE, 2), 4),  # A row.
        ((FREE, 1, 1, 1, 1), 0),
        ((1, 1, 1, FREE), 0),
    ],
)
def test_start(given: tuple[int, ...], start: int) -> None:
    assert start_after(given, 16) == start


def test_tiles_that_are_drawn_anew() -> None:
    assert without_tiles((5, 6, 7, 8), [1, 3], field="tiles") == (5, FREE, 7, FREE)
    assert without_tiles((5, 6), [], field="tiles") == (5, 6)
    for tiles, problem in (
        ([4], "tiles[0]: 4 is not between 0 and 3"),
        ([1, 1], "tiles[1]: tiles must be in ascending order, each once"),
        ([0, 1, 2, 3], "tiles: has every tile"),
    ):
        with pytest.raises(InvalidInputError) as refused:
            without_tiles((5, 6, 7, 8), tiles, field="tiles")
        assert str(refused.value).startswith(problem)
