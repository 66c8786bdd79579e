"""Whatever bytes an input has, it is read or refused in one line; and what others write is read as they meant it."""

import contextlib
import csv
import io
import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from smalti.batches import InputFormat, openai
from smalti.errors import InvalidInputError
from tests.batches.conftest import plan_of

OPTIONS = openai.OpenAIOptions(model="tiny", size="8x8")
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
SYNTAX = st.lists(
    st.sampled_from(
        [
            '"',
            ",",
            "\n",
            "\r\n",
            "\r",
            "{",
            "}",
            "[",
            "]",
            ":",
            "prompt",
            "id",
            "a",
            " ",
            "1",
            "\\",
            "é",
            "null",
        ]
    ),
    max_size=30,
).map(lambda parts: "".join(parts).encode())
CONTENTS = st.binary(max_size=60) | SYNTAX | SYNTAX.map(lambda content: b"prompt,id\n" + content)


def _parquet(rows: int = 40) -> bytes:
    file = io.BytesIO()
    table = {
        "prompt": [f"a fox {row}" for row in range(rows)],
        "seed": list(range(rows)),
        "n": [None, 2] * (rows // 2),
    }
    parquet.write_table(pa.table(table), file, row_group_size=16)
    return file.getvalue()


PARQUET = _parquet()


def read(content: bytes, input_format: InputFormat, **options: Any) -> list[str]:
    plan = plan_of(content, input_format, openai=OPTIONS, **options)
    counts = plan.check()
    prompts = [prompt for shard in plan.shards() for prompt in shard.prompts]
    assert len(prompts) == counts.prompts
    assert [prompt.row for prompt in prompts] == list(range(counts.prompts))
    assert sum(prompt.invalid for prompt in prompts) == counts.invalid
    return [prompt.prompt for prompt in prompts]


@pytest.mark.parametrize("input_format", InputFormat)
@given(content=CONTENTS, skip=st.booleans())
def test_any_bytes(input_format: InputFormat, content: bytes, skip: bool) -> None:
    with contextlib.suppress(InvalidInputError):
        read(content, input_format, skip_invalid=skip)


@given(st.integers(0, len(PARQUET) - 1), st.binary(min_size=1, max_size=8), st.booleans())
def test_damaged_parquet(position: int, change: bytes, skip: bool) -> None:
    content = PARQUET[:position] + change + PARQUET[position + len(change) :]
    with contextlib.suppress(InvalidInputError):
        read(content, InputFormat.PARQUET, skip_invalid=skip)


@given(st.lists(TEXTS, min_size=1, max_size=6), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_what_csv_writers_write(prompts: list[str], end: str, all_quoted: bool) -> None:
    if end == "\n":
        # Python's writer leaves a carriage return without quotation marks then, which is refused.
        prompts = [prompt.replace("\r", "") for prompt in prompts]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator=end, quoting=csv.QUOTE_ALL if all_quoted else csv.QUOTE_MINIMAL)
    writer.writerow(["prompt", "seed"])
    writer.writerows([prompt, row] for row, prompt in enumerate(prompts))
    told = [prompt.strip() for prompt in prompts]
    if all(told):
        assert read(text.getvalue().encode(), InputFormat.CSV) == told
    else:
        with pytest.raises(InvalidInputError, match="column 'prompt': is empty"):
            read(text.getvalue().encode(), InputFormat.CSV)


@given(st.lists(TEXTS.filter(str.strip), min_size=1, max_size=6), st.booleans())
def test_what_json_writers_write(prompts: list[str], ascii_only: bool) -> None:
    lines = [json.dumps({"prompt": prompt}, ensure_ascii=ascii_only) + "\n" for prompt in prompts]
    assert read("".join(lines).encode(), InputFormat.JSONL) == [prompt.strip() for prompt in prompts]
