"""Whatever an input has, the answer is one line that names the line and the column; nothing is half-planned."""

import io
import json
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from smalti.errors import InvalidInputError
from tests.batches.conftest import MakePlan

MEBIBYTE = 2**20


def as_parquet(columns: dict[str, Any], **options: Any) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pa.table(columns), file, **options)
    return file.getvalue()


NOT_UTF8 = pa.Array.from_buffers(
    pa.string(), 2, [None, pa.array([0, 3, 6], pa.int32()).buffers()[1], pa.py_buffer(b"fo\xffcat")]
)

# An input that has two good rows but for one problem: its format, its content, and what is said about it.
ROWS = {
    "text-utf8": ("text", b"a fox\nb\xffd\na cat\n", "line 2: is not valid UTF-8: byte 2 cannot be decoded"),
    "text-nul": ("text", b"a fox\nb\0d\na cat\n", "line 2: must not contain the NUL character"),
    "text-long": (
        "text",
        b"a fox\n" + b"x" * 4001 + b"\na cat\n",
        "line 2: must have at most 4000 characters",
    ),
    "text-huge": (
        "text",
        b"a fox\n" + b"x" * 3 * MEBIBYTE + b"\na cat\n",
        "line 2: has more than 1048576 bytes",
    ),
    "json-none": (
        "jsonl",
        b'{"prompt": "a fox"}\n\n{"prompt": \n{"prompt": "a cat"}\n',
        "line 3: is not JSON",
    ),
    "json-list": (
        "jsonl",
        b'{"prompt": "a fox"}\n[1]\n{"prompt": "a cat"}\n',
        "line 2: must be a JSON object, not a list",
    ),
    "json-deep": (
        "jsonl",
        b'{"prompt": "a fox"}\n' + b"[" * 200_000 + b'\n{"prompt": "a cat"}\n',
        "line 2: is nested",
    ),
    "json-nan": (
        "jsonl",
        b'{"prompt": "a fox"}\n{"prompt": "b", "top_p": NaN}\n{"prompt": "c"}\n',
        "line 2: .*NaN",
    ),
    "json-digits": (
        "jsonl",
        b'{"prompt": "a fox"}\n{"prompt": "b", "seed": ' + b"9" * 5000 + b'}\n{"prompt": "c"}\n',
        "line 2: is not JSON",
    ),
    "json-half": (
        "jsonl",
        b'{"prompt": "a fox"}\n{"prompt": "\\ud800"}\n{"prompt": "c"}\n',
        "line 2, column 'prompt': is not",
    ),
    "json-missing": (
        "jsonl",
        b'{"prompt": "a fox"}\n{"id": "b"}\n{"prompt": "c"}\n',
        "line 2, column 'prompt': is missing",
    ),
    "json-unknown": (
        "jsonl",
        b'{"prompt": "a"}\n{"prompt": "b", "x": 1}\n{"prompt": "c"}\n',
        "line 2: column 'x' has no",
    ),
    "json-twice": (
        "jsonl",
        b'{"prompt": "a fox"}\n{"prompt": "b", "n": 1, "prompt": "d"}\n{"prompt": "c"}\n',
        "line 2: is not JSON: the key 'prompt' occurs twice",
    ),
    "json-utf8": (
        "jsonl",
        b'{"prompt": "a fox"}\n{"prompt": "\xff"}\n{"prompt": "c"}\n',
        "line 2: is not valid UTF-8",
    ),
    "csv-utf8": ("csv", b'prompt,id\na fox,1\n"b\n\xff",2\na cat,3\n', "line 3: is not valid UTF-8"),
    "csv-ragged": (
        "csv",
        b"prompt,id\na fox,1\nb, d,2\na cat,3\n",
        "line 3: has 3 fields, but there are 2 columns",
    ),
    "csv-short": (
        "csv",
        b"prompt,id\na fox,1\nb\na cat,3\n",
        "line 3: has 1 fields, but there are 2 columns",
    ),
    "csv-huge": (
        "csv",
        b'prompt,id\na fox,1\n"' + b"x" * 2 * MEBIBYTE + b'",2\na cat,3\n',
        "line 3: has more than 1048576",
    ),
    "csv-large": (
        "csv",
        b"prompt,id\na fox,1\n" + b"x" * 200_000 + b",2\na cat,3\n",
        "line 3.*(larger than|at most 4000)",
    ),
    "csv-inside": (
        "csv",
        b'prompt,id\na fox,1\n"one\n' + b"x," * MEBIBYTE + b'",2\na cat,3\n',
        "line 3: has more than 1048576 bytes",
    ),
    "csv-quotes": ("csv", b'prompt,id\na fox,1\n"b"d"",2\na cat,3\n', "line 3: is not CSV"),
    "csv-return": (
        "csv",
        b"prompt,id\na fox,1\nb\rd,2\na cat,3\n",
        "line 3: has a carriage return outside",
    ),
    "csv-empty": ("csv", b"prompt,id\na fox,1\n,2\na cat,3\n", "line 3, column 'prompt': is empty"),
    "parquet-empty": (
        "parquet",
        as_parquet({"prompt": ["a fox", None, "a cat"]}),
        "row 1, column 'prompt': is missing",
    ),
    "parquet-seed": (
        "parquet",
        as_parquet({"prompt": ["a fox", "b", "a cat"], "seed": [1.0, 1.5, None]}),
        "row 1, column 'seed': must be an integer, not 1.5",
    ),
    "parquet-nan": (
        "parquet",
        as_parquet({"prompt": ["a fox", "b", "a cat"], "top_p": [1.0, float("nan"), None]}),
        "row 1, column 'top_p': must be a number, not nan",
    ),
    "parquet-list": (
        "parquet",
        as_parquet({"prompt": ["a fox", "b", "a cat"], "n": [None, [4], None]}),
        r"row 1, column 'n': must be an integer, not \[4\]",
    ),
}


@pytest.mark.parametrize(("input_format", "content", "problem"), ROWS.values(), ids=ROWS)
def test_a_bad_row_is_told_or_skipped(
    make_plan: MakePlan, input_format: str, content: bytes, problem: str
) -> None:
    with pytest.raises(InvalidInputError, match=f"^input: {problem}") as raised:
        make_plan(content, input_format).check()
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400
    told: list[str] = []
    plan = make_plan(content, input_format, skip_invalid=True)
    counts = plan.check(on_invalid=told.append)
    assert (counts.prompts, counts.invalid) == (3, 1)
    [shard] = plan.shards()
    assert [prompt.invalid for prompt in shard.prompts] == [False, True, False]
    assert shard.prompts[1].problem is not None
    assert told[0].endswith(shard.prompts[1].problem)
    assert shard.candidates == counts.candidates == 8


def test_nothing_is_taken_from_fields_that_are_out_of_place(make_plan: MakePlan) -> None:
    [shard] = make_plan(b"prompt,id\na, b,c\nd,e\n", "csv", skip_invalid=True).shards()
    assert [(prompt.id, prompt.prompt) for prompt in shard.prompts] == [("0", ""), ("e", "d")]


SEEDS = ["abc", "1.5", "-1", str(2**63), "1e3", "NaN", "9" * 50, "1_000", "٣"]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_seed_that_is_none(make_plan: MakePlan, seed: str) -> None:
    for name, content in (
        ("csv", f"prompt,seed\na fox,{seed}\n"),
        ("jsonl", json.dumps({"prompt": "a fox", "seed": seed})),
    ):
        with pytest.raises(InvalidInputError, match=r"line \d, column 'seed': must be .*, not"):
            make_plan(content.encode(), name).check()


@pytest.mark.parametrize("seed", ["7", " 7 ", "7.0", "+7"])
def test_a_seed_in_a_table(make_plan: MakePlan, seed: str) -> None:
    [shard] = make_plan(f"prompt,seed\na fox,{seed}\n".encode(), "csv").shards()
    assert shard.prompts[0].seed == 7


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"seed": True}, "column 'seed': must be an integer, not True"),
        ({"seed": 1.5}, "column 'seed': must be an integer, not 1.5"),
        ({"seed": 1e300}, "column 'seed': must be an integer, not 1e[+]300"),
        ({"seed": 2**63}, r"column 'seed': must be from 0 to 2\^63 - 1"),
        ({"n": 0}, "column 'n': input should be greater than or equal to 1, not 0"),
        ({"n": {"a": 1}}, "column 'n': must be an integer, not {'a': 1}"),
        ({"candidates": 1025}, "column 'candidates': input should be less than or equal to 1024"),
        ({"n": True}, "column 'n': must be an integer, not True"),
        ({"top_p": 2}, "column 'top_p': input should be less than or equal to 1"),
        ({"top_p": "a"}, "column 'top_p': must be a number, not 'a'"),
        ({"top_p": 10**400}, "column 'top_p': must be a number, not 1000"),
        ({"vary": "perhaps"}, "column 'vary': must be true or false, not 'perhaps'"),
        ({"vary": 2}, "column 'vary': must be true or false, not 2"),
        ({"diversity": 1.5}, "column 'diversity': must be from 0 to 1, not 1.5"),
        ({"id": 1.5}, "column 'id': must be a text or an integer, not 1.5"),
        ({"id": "x" * 257}, "column 'id': must have at most 256 characters, got 257"),
        ({"id": "\0"}, "column 'id': must not contain the NUL character"),
        ({"prompt": ["a"]}, "column 'prompt': must be a text, not a list"),
        ({"prompt": 7}, "column 'prompt': must be a text, not a number"),
        ({"sampling": [1]}, "column 'sampling': must be an object, not a list"),
        ({"sampling": {"top_q": 1}}, "column 'sampling': 'top_q' is none of guidance_scale"),
        ({"sampling": {"top_k": 1}, "top_k": 2}, "column 'top_k': is given twice, once in sampling"),
        ({"sampling": {"top_k": {"a": 1}}}, "column 'top_k': must be an integer"),
    ],
)
def test_a_value_that_cannot_be_used(make_plan: MakePlan, fields: dict[str, Any], problem: str) -> None:
    good = {"prompt": "a fox"}
    content = "\n".join(json.dumps(row) for row in (good, {**good, **fields}, good)).encode()
    with pytest.raises(InvalidInputError, match=f"^input: line 2, {problem}"):
        make_plan(content, "jsonl").check()
    assert make_plan(content, "jsonl", skip_invalid=True).check().invalid == 1


def test_a_value_is_not_taken_for_another_that_is_equal(make_plan: MakePlan) -> None:
    content = b'{"prompt": "a", "n": 1}\n{"prompt": "b", "n": true}\n'
    with pytest.raises(InvalidInputError, match="line 2, column 'n': must be an integer, not True"):
        make_plan(content, "jsonl").check()


# What makes a whole input unusable, which `skip_invalid` does not change.
WHOLE = {
    "empty": ("text", b"", "has no prompts"),
    "blank": ("text", b"\n \n\r\n", "has no prompts"),
    "blank-jsonl": ("jsonl", b"\n\n", "has no prompts"),
    "empty-csv": ("csv", b"", "is empty; its first line must name the columns"),
    "header-only": ("csv", b"prompt,id\n", "has no prompts"),
    "csv-column": (
        "csv",
        b"caption,id\na fox,1\n",
        "there is no column 'prompt'; the input has 'caption', 'id'",
    ),
    "csv-unknown": ("csv", b"prompt,source\na fox,web\n", "column 'source' has no meaning"),
    "csv-twice": ("csv", b"prompt,prompt\na fox,a cat\n", "column 'prompt' occurs twice"),
    "csv-nameless": ("csv", b",prompt\n0,a fox\n", "column 1, which has no name, has no meaning"),
    "csv-tabs": ("csv", b"prompt\tid\na fox\t1\n", "line 1: columns must be separated by commas"),
    "csv-open": (
        "csv",
        b'prompt,id\na fox,1\n"b,2\na cat,3\n',
        "line 3: has a quotation mark that is not closed",
    ),
    "csv-open-huge": (
        "csv",
        b'prompt,id\na fox,1\n"' + b"x\n" * MEBIBYTE,
        "line 3: has a quotation mark that is not closed",
    ),
    "csv-open-fields": (
        "csv",
        b'prompt,id\na fox,1\n"' + b'x","y\n' * MEBIBYTE,
        "line 3: has more than 1048576 bytes",
    ),
    "csv-header": ("csv", b"pr\xffmpt,id\na fox,1\n", "line 1: is not valid UTF-8"),
    "utf-16": ("text", "a fox".encode("utf-16"), "is UTF-16; save it as UTF-8"),
    "gzip": ("jsonl", b"\x1f\x8b\x08\0", r"is compressed \(gzip\)"),
    "parquet-as-text": ("text", as_parquet({"prompt": ["a fox"]}), "is a Parquet file"),
    "no-parquet": ("parquet", b"a fox\n", "is not a Parquet file, or is damaged"),
    "cut-parquet": (
        "parquet",
        as_parquet({"prompt": ["a fox"]})[:-9],
        "is not a Parquet file, or is damaged",
    ),
    "parquet-column": ("parquet", as_parquet({"caption": ["a fox"]}), "there is no column 'prompt'"),
    "parquet-type": (
        "parquet",
        as_parquet({"prompt": [["a fox"]]}),
        "column 'prompt' must have the type string, not list",
    ),
    "parquet-bytes": (
        "parquet",
        as_parquet({"prompt": [b"a fox"]}),
        "column 'prompt' must have the type string, not bin",
    ),
    "parquet-rows": ("parquet", as_parquet({"prompt": pa.array([], pa.string())}), "has no prompts"),
    "all-invalid": ("jsonl", b'{"prompt": ""}\n{"prompt": 1}\n', "(no row can be used; )?line 1"),
}


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(("input_format", "content", "problem"), WHOLE.values(), ids=WHOLE)
def test_an_input_that_is_none(
    make_plan: MakePlan, input_format: str, content: bytes, problem: str, skip: bool
) -> None:
    with pytest.raises(InvalidInputError, match=f"^input: {problem}") as raised:
        make_plan(content, input_format, skip_invalid=skip).check()
    assert "\n" not in str(raised.value)


def test_parquet_with_text_that_is_none(make_plan: MakePlan) -> None:
    content = as_parquet({"prompt": NOT_UTF8})
    with pytest.raises(InvalidInputError, match="row 0, column 'prompt': is not valid UTF-8"):
        make_plan(content, "parquet").check()
    [shard] = make_plan(content, "parquet", skip_invalid=True).shards()
    assert [prompt.prompt for prompt in shard.prompts] == ["", "cat"]


def test_a_damaged_page_of_parquet(make_plan: MakePlan) -> None:
    content = bytearray(as_parquet({"prompt": [f"a fox {row}" for row in range(5000)]}, compression="zstd"))
    content[200:260] = b"\xff" * 60
    with pytest.raises(InvalidInputError, match="is not a Parquet file, or is damaged"):
        make_plan(bytes(content), "parquet").check()


def test_invalid_utf8_in_a_late_line(make_plan: MakePlan) -> None:
    content = b"a fox\n" * 99_998 + b"\xc3\x28\n" + b"a fox\n" * 10
    with pytest.raises(InvalidInputError, match="line 99999: is not valid UTF-8: byte 1"):
        make_plan(content, "text").check()


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"caption": "prompt"}, "columns.caption: is not known; columns are prompt, id"),
        ({"prompt": ""}, "columns.prompt: must not be empty"),
        ({"prompt": "x", "id": "x"}, "columns.prompt: 'x' has two meanings"),
        ({"seed": "zahl"}, "input: there is no column 'zahl'"),
    ],
)
def test_wrong_names_of_columns(make_plan: MakePlan, columns: dict[str, str], problem: str) -> None:
    with pytest.raises(InvalidInputError, match=f"^{problem}"):
        make_plan(b"prompt,id\na fox,1\n", "csv", columns=columns).check()
