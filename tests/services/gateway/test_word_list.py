"""The operator's list of words and patterns."""

import time
from pathlib import Path

import pytest

from smalti.errors import InvalidInputError
from smalti.services.gateway.policy.word_list import WordList

LIST = """\
# Nothing of this is an opinion of ours.

gun
red  Flag
Café
/cat(s|ty)? of doom/
/\\d{4,}/
/(a+)+$/
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "list.txt"
    file.write_text(LIST, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("prompt", "line"),
    [
        ("a gun", 3),
        ("A GUN!", 3),
        ("a g\u200bun", 3),
        ("a ｇｕｎ", 3),
        ("a_gun_on_a_table", 3),
        ("a begun sentence", None),
        ("guns", None),
        ("a red flag", 4),
        ("RED-FLAG", 4),
        ("red and flag", None),
        ("a cafe", 5),
        ("a CAFE\u0301", 5),
        ("the CATTY of doom", 6),
        ("the year 19845", 7),
        ("the year 19", None),
        ("", None),
    ],
)
def test_entries_are_found_as_words_and_patterns(path: Path, prompt: str, line: int | None) -> None:
    assert WordList(path).find(prompt) == line


def test_pattern_cannot_be_made_slow(path: Path) -> None:
    words = WordList(path)
    began = time.monotonic()
    assert words.find("a" * 5000 + "b") is None  # Backtracking would take longer than the universe is old.
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"fine\n/(?=x)/", "line 2: not a regular expression of RE2"),
        (b"\x80gun", "is not valid UTF-8"),
        (b"gun\n\n!!", "line 3: has neither letters nor digits"),
    ],
)
def test_invalid_list_is_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    file = tmp_path / "list.txt"
    file.write_bytes(content)
    with pytest.raises(InvalidInputError, match=problem) as refused:
        WordList(file)
    assert refused.value.field == "SMALTI_GATEWAY_POLICY_LIST"
    assert "\n" not in str(refused.value)
    with pytest.raises(InvalidInputError, match="cannot be read"):
        WordList(tmp_path / "missing")


def test_changed_list_is_used_unless_it_is_invalid(path: Path) -> None:
    words = WordList(path)
    for content, found in (("hat\n", 1), ("/(/\n", 1), ("other\n", None)):
        new = path.with_suffix(".new")
        new.write_text(content)
        new.replace(path)
        assert words.find("a hat") == found
    assert words.find("a gun") is None
