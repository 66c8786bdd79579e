"""Ids that occur twice are found whatever their hashes, and none that does not."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from smalti.batches.duplicates import RECORD, DuplicateFinder, first_pair


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=20))
def test_both_halves_of_a_hash_count(digests: list[tuple[int, int]]) -> None:
    records = np.array([(*digest, place) for place, digest in enumerate(digests)], RECORD)
    pairs = [
        (digests.index(digest), place)
        for place, digest in enumerate(digests)
        if digests[:place].count(digest) == 1
    ]
    assert first_pair(records) == (pairs[0] if pairs else None)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=2), max_size=50))
def test_ids_of_any_text(ids: list[str]) -> None:
    with DuplicateFinder() as finder:
        for place, row_id in enumerate(ids):
            finder.add(row_id, place)
        found = finder.first()
    second = next((place for place, row_id in enumerate(ids) if row_id in ids[:place]), None)
    assert found == (None if second is None else (ids.index(ids[second]), second))
