"""Text from outside: what is taken, and one line for what is not."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smalti.errors import InvalidInputError
from smalti.foreign_text import (
    check_text,
    decode_text,
    load_text,
    parse_json,
    parse_toml,
    printable,
    reason_of,
)


def test_encodings_that_editors_write() -> None:
    for content in (
        "cät".encode(),
        b"\xef\xbb\xbf" + "cät".encode(),
        "cät".encode("utf-16"),
        b"\xfe\xff" + "cät".encode("utf-16-be"),
    ):
        assert decode_text(content, "file") == "cät"
    assert parse_toml(b"\xef\xbb\xbfa = 1\r\nb = '''\r\n'''\r\n", "file") == {"a": 1, "b": ""}
    for content, problem in (
        (b"caf\xe9", r"^file: is not valid UTF-8: byte 4 cannot be decoded$"),
        (b"\xff\xfea", r"^file: is not valid UTF-16: byte 3"),
        (b"a\0", r"^file: must not contain the NUL character"),
    ):
        with pytest.raises(InvalidInputError, match=problem):
            decode_text(content, "file")


@pytest.mark.parametrize(
    ("parse", "content", "problem"),
    [
        (parse_json, "[" * 100_000, "is nested too deeply"),
        (parse_json, '{"a":' * 100_000, "is nested too deeply"),
        (parse_json, "NaN", "NaN is not a number of JSON"),
        (parse_json, "[1, -Infinity]", "-Infinity is not a number"),
        (parse_json, "9" * 5000, "is not JSON: "),
        (parse_json, "{'a': 1}", "is not JSON: Expecting property name"),
        (parse_toml, "a = " + "[" * 100_000, "is nested too deeply"),
        (parse_toml, "a = 2026-99-99", "cannot be read as TOML"),
        (parse_toml, "a = " + "9" * 5000, "cannot be read as TOML"),
        (parse_toml, "= 1", "cannot be read as TOML"),
    ],
)
def test_what_cannot_be_parsed_is_one_line(parse: object, content: str, problem: str) -> None:
    for given_as in (content, content.encode()):
        with pytest.raises(InvalidInputError, match=f"^file: .*{problem}") as caught:
            parse(given_as, "file")  # type: ignore[operator]
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 300


def test_what_is_shown(tmp_path: Path) -> None:
    assert printable("caf\udce9\n\x1b[31m\u202e\ud83d é猫") == r"caf\xe9\x0a\x1b[31m\u202e\ud83d é猫"
    with pytest.raises(InvalidInputError, match=r"^prompt: is not valid UTF-8: caf\\xe9$"):
        check_text("caf\udce9", "prompt")
    assert reason_of(ValueError(f"{object()} is\nbad")) == "is bad"
    assert reason_of(FileNotFoundError(2, "No such file", "/a/b")) == "No such file"
    assert reason_of(KeyError()) == "KeyError"
    with pytest.raises(InvalidInputError, match=r"none\.toml: cannot be read \(No such file"):
        load_text(tmp_path / "none.toml")


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    for read in (decode_text, parse_json, parse_toml):
        with contextlib.suppress(InvalidInputError):
            read(content, "file")


@given(st.text(max_size=100) | st.text(st.characters(categories=["Cs", "Cc", "Lu"]), max_size=20))
def test_any_text_can_be_shown(text: str) -> None:
    shown = printable(text)
    shown.encode()
    assert len(shown.splitlines()) <= 1
