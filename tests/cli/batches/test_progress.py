"""The rate of a batch, and how times and sizes are said."""

import pytest

from smalti.cli.batches.progress import Rate, size_in_words, time_in_words


def test_rate_is_that_of_the_last_minutes() -> None:
    rate = Rate()
    assert rate.per_second() is None
    for second in range(0, 1000, 10):
        rate.add(second if second < 500 else 500 + (second - 500) * 3, now=second)
    assert rate.per_second() == pytest.approx(3)
    rate = Rate()
    rate.add(5, now=0)
    rate.add(5, now=10)
    assert rate.per_second() is None


def test_times_and_sizes_are_said_shortly() -> None:
    assert [time_in_words(seconds) for seconds in (3, 200, 7500, 200_000)] == [
        "3 s", "3 min", "2 h 5 min", "2 d 8 h",
    ]  # fmt: skip
    assert [size_in_words(size) for size in (12, 1500, 2.5e9, 4e12)] == [
        "12 bytes", "1.5 kB", "2.5 GB", "4.0 TB",
    ]  # fmt: skip
