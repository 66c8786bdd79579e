"""Cleaning: captions, hosts and sizes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from smalti.training.data.cleaning import clean, size_problem, watermark_host

ENGLAND = "🏴" + "".join(chr(0xE0000 + ord(letter)) for letter in "gbeng\x7f")


@pytest.mark.parametrize(
    ("found", "cleaned"),
    [
        ("  a   red\tbird\n on a wire ", "a red bird on a wire"),
        ("Fish &amp; chips", "Fish & chips"),
        ("<b>Fish &amp; chips</b>", "Fish & chips"),
        ("<b>A bird</b> in <a href='x'>Rome</a>", "A bird in Rome"),
        ("A bird https://example.org/bird.jpg?x=1 in Rome", "A bird in Rome"),
        ("See www.example.org: a bird", "See a bird"),
        ("schÃ¶nes Haus", "schönes Haus"),
        ("a cafe\u0301", "a café"),
        ("a bird\x00\u200b on a wire", "a bird on a wire"),
        ("A bird - stock photo #123456789", "A bird"),
        ("two birds in 1987", "two birds in 1987"),
        ('"a bird" |', "a bird"),
        ("鳥が木にいる", "鳥が木にいる"),
        ("a < b and b > c", "a < b and b > c"),
        ("a<b then c>d", "a<b then c>d"),
        ("1000000 candles", "1000000 candles"),
        ("a cat, image id: 1234567", "a cat"),
        ("猫", "猫"),
        ("赤い", "赤い"),
        ("猫2匹", "猫2匹"),
        ("강", "강"),
        ("يد", "يد"),
        ("דג", "דג"),
        ("घर", "घर"),
        ("पूर्ण चंद्रमा", "पूर्ण चंद्रमा"),
        ("แมว", "แมว"),
        ("ёж", "ёж"),
        ("🐱", "🐱"),
        ("👨\u200d👩\u200d👧", "👨\u200d👩\u200d👧"),
        (ENGLAND, ENGLAND),
        ("\U0001fae9", "\U0001fae9"),  # Newer than Python 3.11.
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("\u202eמילה\u202c", "מילה"),
        ("soft\u00adened", "softened"),
    ],
)
def test_captions_are_cleaned(found: str, cleaned: str) -> None:
    assert clean(found).text == cleaned


@pytest.mark.parametrize(
    "found",
    [
        "",
        "  ",
        "...",
        "12",
        "DSC_0042.JPG",
        "IMG-2021",
        "my holiday.jpeg",
        "https://example.org/a",
        "<br>",
        "ab",
        "©",
        "猫.jpg",
        "1000000",
    ],
)
def test_captions_that_say_nothing(found: str) -> None:
    assert clean(found).text is None


def test_long_captions_are_cut_between_words() -> None:
    assert clean("one two three four", longest=13).text == "one two three"
    assert clean("one two three four", longest=12).text == "one two"
    assert clean("abcdefgh", longest=4).text == "abcd"
    assert clean("日本語の猫です", longest=4).text == "日本語の"
    assert clean("a " + "ก็" * 20, longest=9).text == "a " + "ก็" * 3
    assert clean("👨\u200d👩\u200d👧" * 3, longest=7).text == "👨\u200d👩\u200d👧"


def test_what_is_left_out_is_told_with_an_example() -> None:
    assert clean("<b>a cat</b> www.example.org #1234567 \u202e").left_out == {
        "tag": "<b>",
        "address": "www.example.org",
        "stock number": "#1234567",
        "control character": "U+202E",
    }
    assert clean("two cats\n\tand a dog").left_out == {}


@given(st.text(max_size=200), st.integers(5, 50))
def test_any_text_comes_out_clean(text: str, longest: int) -> None:
    cleaned = clean(text, longest).text
    if cleaned is not None:
        assert cleaned == " ".join(cleaned.split())
        assert len(cleaned) <= longest
        assert cleaned.isprintable() or any(not character.isprintable() for character in text)


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("https://image.shutterstock.com/image-photo/a.jpg", "shutterstock.com"),
        ("http://ALAMY.com:8080/x", "alamy.com"),
        ("https://user@c8.alamy.com./x", "alamy.com"),
        ("https://stock.adobe.com/x", "stock.adobe.com"),
        ("https://blog.adobe.com/x", None),
        ("https://notalamy.com/x", None),
        ("https://example.org/alamy.com/x", None),
        ("alamy.com/x", None),
        ("http://[broken", None),
        ("", None),
    ],
)
def test_hosts_of_watermarked_pictures(address: str, host: str | None) -> None:
    assert watermark_host(address) == host


def test_sizes() -> None:
    def problem(width: int, height: int) -> str | None:
        return size_problem(Image.new("1", (width, height)), smallest_side=64, longest_shape=3.0)

    assert problem(64, 192) is None
    assert problem(192, 64) is None
    assert problem(63, 100) == "too small"
    assert problem(64, 193) == "too long"
