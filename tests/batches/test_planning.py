"""A whole input is checked, then cut into shards that depend on nothing but the input and the defaults."""

import io
import json
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

import smalti.batches.planning
from smalti.batches import BatchDefaults, BatchPlan, BatchPrompt, InputFormat, ShardFile, seed_of_row
from smalti.errors import InvalidInputError
from smalti.parameters import SamplingParameters, SecondPass
from smalti.storage import LocalStore, MemoryStore
from tests.batches.conftest import DEFAULTS, MakePlan

ROWS: list[dict[str, Any]] = [
    {"id": "a", "prompt": " a red fox ", "seed": 7, "n": 1, "candidates": 3, "top_k": 5, "vary": True},
    {"id": "b", "prompt": 'say "hello", fox\nin two lines', "temperature": 0.5, "diversity": 0.25},
    {"id": "c", "prompt": "ein Fuchs im Schnee – rötlich"},
]


def as_jsonl(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def as_csv(rows: list[dict[str, Any]]) -> bytes:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [",".join(columns)]
    for row in rows:
        values = ["" if row.get(key) is None else str(row[key]) for key in columns]
        lines.append(",".join('"' + value.replace('"', '""') + '"' if value else "" for value in values))
    return "\r\n".join(lines).encode()


def as_parquet(rows: list[dict[str, Any]], **options: Any) -> bytes:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    file = io.BytesIO()
    parquet.write_table(
        pa.Table.from_pylist([{key: row.get(key) for key in columns} for row in rows]), file, **options
    )
    return file.getvalue()


AS = {"jsonl": as_jsonl, "csv": as_csv, "parquet": as_parquet}


def prompts_of(plan: BatchPlan, first: int = 0) -> list[BatchPrompt]:
    return [prompt for shard in plan.shards(first) for prompt in shard.prompts]


@pytest.mark.parametrize("name", AS)
def test_every_format_gives_the_same_prompts(make_plan: MakePlan, name: str) -> None:
    plan = make_plan(AS[name](ROWS), name)
    counts = plan.check()
    assert (counts.prompts, counts.invalid, counts.candidates, counts.pictures) == (
        3,
        0,
        3 + 4 + 4,
        1 + 2 + 2,
    )
    assert prompts_of(plan) == [
        BatchPrompt(
            row=0,
            id="a",
            prompt="a red fox",
            seed=7,
            n=1,
            candidates=3,
            sampling=SamplingParameters(top_k=5),
            vary=True,
        ),
        BatchPrompt(
            row=1,
            id="b",
            prompt='say "hello", fox\nin two lines',
            seed=seed_of_row(0, 1),
            sampling=SamplingParameters(top_k=20, temperature=0.5),
            diversity=0.25,
            n=2,
            candidates=4,
        ),
        BatchPrompt(
            row=2,
            id="c",
            prompt="ein Fuchs im Schnee – rötlich",
            seed=seed_of_row(0, 2),
            sampling=DEFAULTS.sampling,
            n=2,
            candidates=4,
        ),
    ]


def test_text_has_a_prompt_in_each_line(make_plan: MakePlan) -> None:
    content = b"\xef\xbb\xbfone\r\n\r\n  two \n \xe3\x80\x80 \nthree, with a comma"
    plan = make_plan(content, "text", DEFAULTS.model_copy(update={"seed": 3}))
    counts = plan.check()
    assert (counts.prompts, counts.blank) == (3, 2)
    prompts = prompts_of(plan)
    assert [(each.row, each.id, each.prompt) for each in prompts] == [
        (0, "0", "one"),
        (1, "1", "two"),
        (2, "2", "three, with a comma"),
    ]
    assert [each.seed for each in prompts] == [seed_of_row(3, row) for row in range(3)]


@pytest.mark.parametrize("name", ["text", *AS])
def test_shards_can_be_cut_from_any_of_them_on(make_plan: MakePlan, name: str) -> None:
    rows = [{"prompt": f"fox {row}"} for row in range(100)]
    text = b"".join(b"\n" * (row % 3) + f"fox {row}\n".encode() for row in range(100))
    content = (
        text
        if name == "text"
        else as_parquet(rows, row_group_size=7)
        if name == "parquet"
        else AS[name](rows)
    )
    plan = make_plan(content, name, shard_prompts=8)
    shards = list(plan.shards())
    assert [len(shard.prompts) for shard in shards] == [8] * 12 + [4]
    assert [prompt.row for shard in shards for prompt in shard.prompts] == list(range(100))
    for first in (0, 1, 7, 12, 13):
        assert [shard.to_bytes() for shard in plan.shards(first)] == [
            shard.to_bytes() for shard in shards[first:]
        ]
    assert ShardFile.parse("key", shards[12].to_bytes()) == shards[12].prompts


@pytest.mark.parametrize("name", AS)
def test_columns_are_renamed_and_ignored(make_plan: MakePlan, name: str) -> None:
    content = AS[name]([{"caption": "a fox", "prompt": "not this", "source": "web"}])
    with pytest.raises(InvalidInputError, match="column 'prompt' has no meaning"):
        make_plan(content, name, columns={"prompt": "caption"}).check()
    plan = make_plan(content, name, columns={"prompt": "caption"}, ignore_columns=True)
    plan.check()
    assert [each.prompt for each in prompts_of(plan)] == ["a fox"]


def test_sampling_may_be_one_column(make_plan: MakePlan) -> None:
    sampling = {"top_k": 3, "temperature": None}
    rows: list[dict[str, Any]] = [
        {"prompt": "a fox", "sampling": sampling},
        {"prompt": "a cat", "sampling": None},
    ]
    wanted = [SamplingParameters(top_k=3), DEFAULTS.sampling]
    for name in ("jsonl", "parquet"):
        assert [each.sampling for each in prompts_of(make_plan(AS[name](rows), name))] == wanted
    content = b'prompt,sampling\na fox,"{""top_k"": 3}"\na cat,\n'
    assert [each.sampling for each in prompts_of(make_plan(content, "csv"))] == wanted


@pytest.mark.parametrize(
    ("row", "asked", "counts"),
    [
        ({}, {}, (2, 4)),
        ({"n": 6}, {}, (6, 6)),
        ({"candidates": 1}, {}, (1, 1)),
        ({"n": 6, "candidates": 8}, {}, (6, 8)),
        ({}, {"n": 6}, (6, 6)),
        ({"n": 3}, {"n": 6}, (3, 4)),
        ({}, {"candidates": 1}, (1, 1)),
        ({"candidates": 8}, {"n": 6, "candidates": 7}, (6, 8)),
    ],
)
def test_counts_follow_as_in_a_job(
    make_plan: MakePlan, row: dict[str, int], asked: dict[str, int], counts: tuple[int, int]
) -> None:
    plan = make_plan(as_jsonl([{"prompt": "a fox", **row}]), "jsonl", DEFAULTS.model_copy(update=asked))
    [prompt] = prompts_of(plan)
    assert (prompt.n, prompt.candidates) == counts


@pytest.mark.parametrize(("row", "asked"), [({"n": 3, "candidates": 2}, {}), ({"n": 3}, {"candidates": 2})])
def test_more_pictures_than_candidates_are_refused(
    make_plan: MakePlan, row: dict[str, int], asked: dict[str, int]
) -> None:
    plan = make_plan(as_jsonl([{"prompt": "a fox", **row}]), "jsonl", DEFAULTS.model_copy(update=asked))
    with pytest.raises(InvalidInputError, match="line 1, column 'n': 3 pictures cannot be chosen from 2"):
        plan.check()


@pytest.mark.parametrize("name", ["csv", "jsonl", "parquet"])
def test_an_id_that_occurs_twice_is_refused(make_plan: MakePlan, name: str) -> None:
    rows = [{"id": f"id-{row}", "prompt": "a fox"} for row in range(3000)]
    make_plan(AS[name](rows), name).check()
    rows[2990]["id"] = rows[17]["id"]
    rows[2995]["id"] = rows[2]["id"]
    place = {
        "csv": "line 2992: .* line 19;",
        "jsonl": "line 2991: .* line 18;",
        "parquet": "row 2990: .* row 17;",
    }
    with pytest.raises(InvalidInputError, match=place[name]):
        make_plan(AS[name](rows), name, skip_invalid=True).check()


def test_a_number_that_stands_for_a_missing_id_is_an_id_too(make_plan: MakePlan) -> None:
    with pytest.raises(InvalidInputError, match="line 2: the id is also that of line 1"):
        make_plan(b'{"prompt": "a", "id": "1"}\n{"prompt": "b"}\n', "jsonl").check()


def test_temporary_files_of_ids_are_removed(make_plan: MakePlan, tmp_path: Path) -> None:
    content = as_jsonl([{"id": f"{row}", "prompt": "a fox"} for row in range(5000)])
    seen = []
    make_plan(content, "jsonl").check(
        folder=tmp_path, on_rows=lambda _: seen.append(len(list(tmp_path.iterdir())))
    )
    assert seen == [1]
    assert list(tmp_path.iterdir()) == []


def test_the_same_text_twice_is_two_prompts(make_plan: MakePlan) -> None:
    first, second = prompts_of(make_plan(b"a fox\na fox\n", "text"))
    assert first.prompt == second.prompt
    assert first.seed != second.seed


@given(
    st.fixed_dictionaries(
        {"prompt": st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)},
        optional={
            "seed": st.integers(-1, 2**63),
            "n": st.integers(0, 6),
            "candidates": st.integers(0, 1025),
            "top_p": st.floats(-0.5, 1.5),
            "temperature": st.floats(0, 101),
            "diversity": st.floats(-0.1, 1.1),
            "vary": st.booleans(),
        },
    )
)
def test_what_is_accepted_is_read_back_the_same(row: dict[str, Any]) -> None:
    content = json.dumps(row).encode()
    plan = BatchPlan(open=lambda: io.BytesIO(content), format="jsonl", defaults=DEFAULTS)  # type: ignore[arg-type]
    in_range = (
        0 <= row.get("seed", 0) < 2**63
        and 1 <= row.get("n", 1) <= row.get("candidates", max(4, row.get("n", 1))) <= 1024
        and 0 < row.get("top_p", 1) <= 1
        and row.get("temperature", 1) <= 100
        and 0 <= row.get("diversity", 0) <= 1
    )
    if row["prompt"].strip() and in_range:
        [shard] = plan.shards()
        assert ShardFile.parse("key", shard.to_bytes()) == shard.prompts
        [prompt] = shard.prompts
        assert prompt.prompt == row["prompt"].strip()
        for name in ("seed", "n", "candidates", "diversity", "vary"):
            assert getattr(prompt, name) == row.get(name, getattr(prompt, name))
        for name in ("top_p", "temperature"):
            assert getattr(prompt.sampling, name) == row.get(name, getattr(prompt.sampling, name))
    else:
        with pytest.raises(InvalidInputError, match=r"^input: line 1, column"):
            list(plan.shards())


def test_a_row_may_have_as_many_candidates_as_the_limit(make_plan: MakePlan) -> None:
    defaults = DEFAULTS.model_copy(update={"max_candidates": 8})
    make_plan(b'{"prompt": "a fox", "candidates": 8}', "jsonl", defaults).check()
    with pytest.raises(InvalidInputError, match=r"line 1, column 'candidates': must be from 1 to 8, not 9"):
        make_plan(b'{"prompt": "a fox", "candidates": 9}', "jsonl", defaults).check()


def test_all_prompts_have_the_second_pass_of_the_batch(make_plan: MakePlan) -> None:
    defaults = DEFAULTS.model_copy(update={"second_pass": SecondPass(upscale=2)})
    [prompt] = prompts_of(make_plan(b"a fox\n", "text", defaults))
    assert prompt.second_pass == SecondPass(upscale=2)


def test_too_many_shards_are_refused(make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smalti.batches.planning, "MAX_SHARDS", 3)
    make_plan(b"a fox\n" * 6, "text", shard_prompts=2).check()
    with pytest.raises(
        InvalidInputError, match="has 7 rows, which are more than 3 shards; use larger shards"
    ):
        make_plan(b"a fox\n" * 7, "text", shard_prompts=2).check()


def test_names_of_columns_may_have_blanks_around_them(make_plan: MakePlan) -> None:
    [prompt] = prompts_of(make_plan(b"id , prompt\nx,a fox\n", "csv"))
    assert (prompt.id, prompt.prompt) == ("x", "a fox")


@pytest.mark.parametrize("name", ["text", *AS])
def test_an_input_in_a_store(name: str, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"prompt": f"fox {row}"} for row in range(50)]
    content = b"".join(f"fox {row}\n".encode() for row in range(50)) if name == "text" else AS[name](rows)
    for store in (MemoryStore(), LocalStore(tmp_path)):
        store.put("inputs/a", content)
        plan = BatchPlan(
            open=partial(store.open_object, "inputs/a"),
            format=InputFormat(name),
            defaults=DEFAULTS,
            shard_prompts=8,
        )
        assert plan.check().prompts == 50
        assert [each.prompt for each in prompts_of(plan, 5)] == [f"fox {row}" for row in range(40, 50)]


def test_defaults_are_checked_before_the_input(make_plan: MakePlan) -> None:
    defaults = BatchDefaults(
        n=5, candidates=4, default_n=1, default_candidates=1, sampling=SamplingParameters()
    )
    with pytest.raises(InvalidInputError, match=r"^n: 5 pictures cannot be chosen from 4"):
        make_plan(b"a fox\n", "text", defaults).check()
    with pytest.raises(InvalidInputError, match=r"^shard_prompts: must be from 1 to 1024, not 0"):
        make_plan(b"a fox\n", "text", shard_prompts=0).check()
