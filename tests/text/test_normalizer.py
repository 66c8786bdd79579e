"""Normalising prompts."""

import json
import math
import string
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.paths import GOLDEN
from smalti.errors import ModelError
from smalti.text.hashtags import HashtagSplitter, WordRanks
from smalti.text.normalizer import TextNormalizer

VALUES = GOLDEN / "text"
CASES = json.loads((VALUES / "normalizer.json").read_text(encoding="utf-8"))

with_words = TextNormalizer(VALUES / "words-frequency.txt")
without_words = TextNormalizer()

# The text that the rules apply to, in any order and number, with anything else in between.
PIECES = st.sampled_from([
    "<person>", ", ", " and ", "[12]", "<b>", "</b>", "&amp;", "&lt;", "http://a.b/c", "#dogoftheday",
    "1,000", "v1.2", "it's", "1/2", "--", "\"'`", "....", "_", "\\", "#", " \t\n", "VIIII", "xtokx",
    "🥑", "é", "ÃƒÂ©", "\ud83d",
])  # fmt: skip
TEXTS = st.lists(PIECES | st.text(max_size=5)).map("".join)


def word_list(folder: Path, *words: str) -> Path:
    path = folder / "words.txt"
    path.write_text("".join(f"{word} 1\n" for word in words), encoding="utf-8")
    return path


@pytest.mark.parametrize("case", CASES, ids=[case["text"] or "empty" for case in CASES])
def test_text_is_normalised_as_by_the_original(case: dict[str, str]) -> None:
    assert with_words(case["text"]) == case["normalized"]


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("schÃ¶n café", " schon cafe"),
        ("“curly” it’s", ' " curly " it\'s'),
        ("<i>a &amp;amp;amp; b", " a & amp, b"),
        ("👩‍🚀 in space", " woman astronaut, in space"),
        ("half of \ud83d an emoji", " half of an emoji"),
        ("[12] a dog [3] runs[4] ", " a dog, 3, runs"),
        ("<b>bold</b>text", " bold text"),
        ("i <3 you > me", " i me"),
        ("(https://a.b/c) d", " d"),
        ("1,234,567 and 1,23", " 1234567 and 1, 23"),
        ("it's a dog's life, they'll, o'clock", " it's a dog's life, they'll, o \" clock"),
        ("I'm, I'd, we've, you're, can't", " i'm, i'd, we've, you're, can't"),
        ("a.b.c.d 1/2/3", " a.b, c.d 1/2, 3"),
        ("well-known a-b-c", " well known a b, c"),
        ("50%off/on $5*2", " 50 % off, on $ 5 * 2"),
        ("sooooo good!!!! VIII VIIII 100000", " so good, viii vi 100000"),
        ("he said \"hi\", 'bye'.", ' he said " hi ", " bye "'),
        (", a,,, ,b ,", " a, b"),
    ],
)  # fmt: skip
def test_each_rule(text: str, normalized: str) -> None:
    assert without_words(text) == normalized


@settings(deadline=None)
@given(TEXTS)
def test_normalised_text_is_plain(text: str) -> None:
    normalized = with_words(text)
    assert normalized[0] == " "
    assert normalized[1:] == normalized.strip()
    assert "  " not in normalized
    assert normalized.isascii()
    assert normalized == normalized.lower()
    assert not set(normalized) & set("()[]|:;?!=+~{}-#_\\`\t\n")
    assert not normalized.startswith(" ,")
    assert not normalized.endswith(",")


@pytest.mark.parametrize(
    ("start", "run", "end", "normalized"),
    [("a", " ", "b", " a b"), ("a", ' "', "b", ' a " b'), ("a", ", ", "b", " a, b"), ("a[1]", " ", "", " a")],
)
def test_run_of_a_hundred_thousand_takes_no_longer(start: str, run: str, end: str, normalized: str) -> None:
    # An expression that tries every way to divide the run would take minutes.
    assert with_words(start + run * 100_000 + end) == normalized


def test_run_after_a_person_takes_no_longer() -> None:
    assert with_words("<person>" + ", " * 100_000 + "b").endswith(", b")


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("<person> and <PERSON>,<person> dance", " people dance"),
        ("<person> or <person>", " someone or someone"),
        ("31 <person>", " 31 somebody"),
        ("two<person>s", " two a person s"),
    ],
)
def test_phrase_for_a_person_depends_on_the_text(text: str, normalized: str) -> None:
    assert without_words(text) == normalized


def test_phrases_for_persons_follow_their_weights() -> None:
    drawn = Counter(without_words(f"{number}:<person>").split(", ")[1] for number in range(4000))
    assert set(drawn) == {"a person", "someone", "somebody"}
    for phrase, weight in ("a person", 282265), ("someone", 121194), ("somebody", 12219):
        expected = 4000 * weight / (282265 + 121194 + 12219)
        assert abs(drawn[phrase] - expected) < 4 * math.sqrt(expected)


def test_without_words_hashtags_are_not_split() -> None:
    assert without_words("#throwbackthursday at #the_beach") == " throwbackthursday at the beach"


def test_list_is_not_read_before_the_first_hashtag(tmp_path: Path) -> None:
    words = word_list(tmp_path, "red", "cat")
    normalizer = TextNormalizer(words)
    words.unlink()
    assert normalizer("a red cat") == " a red cat"
    with pytest.raises(ModelError, match=r"words\.txt: cannot be read"):
        normalizer("a #redcat")


def test_missing_list_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"words\.txt: no such file"):
        TextNormalizer(tmp_path / "words.txt")


def test_list_without_words_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"words\.txt: contains no words"):
        TextNormalizer(word_list(tmp_path))("#redcat")


@pytest.mark.parametrize(
    ("words", "hashtag", "split"),
    [
        # ln 2 + ln 3 > ln 1; ln 2 + ln 3 < ln 7: the later line of a repeated word counts.
        (("ab", "a", "b"), "ab", "ab"),
        (("ab", "a", "b", "c", "d", "e", "ab"), "ab", "a b"),
        # Equally cheap (ln 2 + ln 6 = ln 3 + ln 4): the shorter last piece.
        (("x", "ab", "a", "bc", "y", "c"), "abc", "ab c"),
        # Lines whose words cannot occur in hashtags are counted too.
        (("a", "é", "b", "ab"), "ab", "a b"),
        (("a", "b", "é", "c", "ab"), "ab", "a b"),
        # Unknown text is split into characters.
        (("red", "cat"), "redxcat", "red x c a t"),
        (("throw", "back"), "ThrowBack", "Throw Back"),
        (("of", "dogs"), "dogs_of", "dogs of"),
        (("2", "0", "vision"), "2020vision", "2020 vision"),
        (("dog", "'s", "life"), "dog'slife", "dog's life"),
        (("a", "'", "'s"), "a''s", "a ' 's"),
    ],
)
def test_hashtag_is_split_by_the_ranks_of_its_words(
    tmp_path: Path, words: tuple[str, ...], hashtag: str, split: str
) -> None:
    assert HashtagSplitter(word_list(tmp_path, *words))(hashtag) == split


def test_last_line_of_a_repeated_word_counts(tmp_path: Path) -> None:
    ranks = WordRanks(word_list(tmp_path, *["red", "cat"] * 1000))
    assert ranks.cost("red") == math.log(1999)
    assert ranks.cost("cat") == math.log(2000)
    assert ranks.cost("dog") == ranks.cost("redcat") == math.inf


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, unique=True),
    st.text("abc", min_size=1, max_size=7),
)
def test_no_split_is_cheaper(
    tmp_path_factory: pytest.TempPathFactory, words: list[str], hashtag: str
) -> None:
    def cost(pieces: list[str]) -> float:
        return sum(math.log(words.index(piece) + 1) if piece in words else math.inf for piece in pieces)

    pieces = HashtagSplitter(word_list(tmp_path_factory.mktemp("words"), *words))(hashtag).split()
    assert "".join(pieces) == hashtag
    positions = range(1, len(hashtag))
    every_split = [
        [hashtag[start:end] for start, end in zip((0, *cuts), (*cuts, len(hashtag)), strict=True)]
        for count in range(len(hashtag))
        for cuts in combinations(positions, count)
    ]
    assert cost(pieces) == pytest.approx(min(map(cost, every_split)))


def test_long_hashtag_is_split_in_reasonable_time() -> None:
    assert with_words("#" + string.ascii_lowercase * 100).replace(" ", "") == string.ascii_lowercase * 100
