"""Files of the manifest: what is written is read back, and the bytes follow from the rows alone."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smalti.batches import PictureRecord, PromptResult, read_manifest
from smalti.batches.manifest import ROWS_IN_GROUP, ManifestWriter, parse_results

ROWS = 2 * ROWS_IN_GROUP + 100


def result(row: int, prompt: str, pictures: tuple[PictureRecord, ...] = ()) -> PromptResult:
    return PromptResult(
        row=row,
        id=str(row),
        prompt=prompt,
        seed=row,
        state="drawn",
        model="tiny",
        revision="0",
        pictures=pictures,
    )


def picture(rank: int, score: float = 0.5, wording: str | None = None) -> PictureRecord:
    return PictureRecord(
        key=f"000000000-{rank}",
        candidate=rank,
        score=score,
        sha256=f"{rank:064x}",
        size=rank + 1,
        width=8,
        height=8,
        wording=wording,
    )


def written(path: Path, results: list[PromptResult], together: int) -> bytes:
    with ManifestWriter(path) as writer:
        for start in range(0, len(results), together):
            writer.add(parse_results("results", PromptResult.to_bytes(results[start : start + together])))
    return path.read_bytes()


@pytest.mark.parametrize("together", [1000, ROWS_IN_GROUP - 1, ROWS])
def test_the_bytes_do_not_depend_on_how_rows_came(tmp_path: Path, together: int) -> None:
    results = [result(row, f"a fox {row % 7}", (picture(row % 3),) * (row % 4)) for row in range(ROWS)]
    assert written(tmp_path / "a", results, together) == written(tmp_path / "b", results, 256)


def test_relative_path_with_a_colon_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run:7").mkdir()
    monkeypatch.chdir(tmp_path)
    assert written(Path("run:7/manifest.parquet"), [result(0, "a fox", ())], 1)


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)


@given(
    st.lists(
        st.tuples(
            texts | st.sampled_from(["2026-01-02", "2026-01-02T03:04:05", "null", "1e5", '"', "\u2028\n\r"]),
            st.none() | texts,
            st.lists(
                st.tuples(st.floats(allow_nan=False, allow_infinity=False), st.none() | texts), max_size=3
            ),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_results_are_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, str | None, list[tuple[float, str | None]]]],
) -> None:
    results = [
        result(row, prompt, tuple(picture(rank, score, wording) for rank, (score, wording) in enumerate(pictures)))
        .model_copy(update={"effective_prompt": effective})
        for row, (prompt, effective, pictures) in enumerate(rows)
    ]  # fmt: skip
    path = tmp_path_factory.mktemp("manifest") / "0.parquet"
    written(path, results, 2)
    with path.open("rb") as file:
        assert list(read_manifest("0.parquet", file)) == results


def test_the_largest_row(tmp_path: Path) -> None:
    pictures = tuple(picture(rank, wording="w" * 4000) for rank in range(1024))
    results = [result(row, "p" * 4000, pictures) for row in range(2)]
    written(tmp_path / "0.parquet", results, 2)
    with (tmp_path / "0.parquet").open("rb") as file:
        assert list(read_manifest("0.parquet", file)) == results
