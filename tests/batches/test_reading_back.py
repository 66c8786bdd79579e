"""What a batch has written is a data set: for `webdataset`, `datasets`, `pyarrow`, and our own training."""

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset
import pytest
from PIL import Image

from smalti.batches import BatchPlan, BatchPrompt, FolderPlace, PictureFormat, TarWriter, finish, read_tar
from smalti.training.data.configuration import ImportSettings
from smalti.training.data.importing import import_pictures
from smalti.training.data.shards import read_rows, splits_in
from smalti.training.data.sources import read_source
from tests.batches.conftest import plan_of
from tests.batches.drawn import SIDE, describe, draw, draw_all, text_plan

PICTURES = 9 * 2


@pytest.fixture(scope="module", params=PictureFormat)
def picture_format(request: pytest.FixtureRequest) -> PictureFormat:
    found: PictureFormat = request.param
    return found


@pytest.fixture(scope="module")
def plan() -> BatchPlan:
    return text_plan(10, bad=5)


@pytest.fixture(scope="module")
def prompts(plan: BatchPlan) -> dict[int, BatchPrompt]:
    return {prompt.row: prompt for shard in plan.shards() for prompt in shard.prompts}


@pytest.fixture(scope="module")
def output(plan: BatchPlan, picture_format: PictureFormat, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a batch of ten prompts, of which one could not be drawn."""
    folder = tmp_path_factory.mktemp("batch")
    out = folder / "out"
    parts = draw_all(plan, FolderPlace(out), folder, picture_format=picture_format)
    finish(FolderPlace(out), describe(plan, picture_format), parts)
    return out


def pixels_of(prompt: BatchPrompt, rank: int, picture_format: PictureFormat) -> np.ndarray:
    content = draw(prompt, picture_format)[rank].content
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


# It leaves files open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset(output: Path, picture_format: PictureFormat, prompts: dict[int, BatchPrompt]) -> None:
    import webdataset

    urls = [str(path) for path in sorted(output.glob("*.tar"))]
    samples = list(
        webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)
        .decode("rgb8")
        .to_tuple("__key__", picture_format.value, "json")
    )
    assert len(samples) == PICTURES
    for key, pixels, record in samples:
        prompt = prompts[record["row"]]
        assert key == f"{record['row']:09d}-{record['rank']}"
        assert (record["prompt"], record["seed"]) == (prompt.prompt, prompt.seed)
        np.testing.assert_array_equal(pixels, pixels_of(prompt, record["rank"], picture_format))


def test_pyarrow(output: Path, prompts: dict[int, BatchPrompt]) -> None:
    table = pyarrow.dataset.dataset(output / "manifest").to_table(
        columns=["row", "prompt", "state", "pictures"]
    )
    rows = table.to_pylist()
    assert [row["prompt"] for row in rows] == [prompts[row].prompt for row in range(10)]
    assert sum(len(row["pictures"]) for row in rows) == PICTURES


def test_smalti_data_import(output: Path, tmp_path: Path) -> None:
    entries = list(read_source(output))
    assert len(entries) == PICTURES
    settings = ImportSettings(resolution=SIDE, smallest_side=SIDE, validation=0.3)
    report = import_pictures(output, tmp_path / "data", settings)
    assert report.problems == []
    rows = [row for split in splits_in(tmp_path / "data") for row in read_rows(tmp_path / "data", split)]
    assert sorted({str(row["caption"]) for row in rows}) == [f"a fox {row}" for row in range(10) if row != 5]


def test_a_caption_goes_before_a_prompt(tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, content in (
            ("0.png", picture.getvalue()),
            ("0.json", json.dumps({"caption": "a caption", "prompt": "a prompt"}).encode()),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    [entry] = read_source(tmp_path)
    assert entry.captions == ("a caption",)  # type: ignore[union-attr]


@pytest.fixture
def load_dataset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    import datasets

    datasets.disable_progress_bars()

    def load(kind: str, **options: Any) -> Any:
        return datasets.load_dataset(kind, split="train", cache_dir=str(tmp_path / "cache"), **options)

    return load


def test_datasets(
    load_dataset: Any,
    output: Path,
    picture_format: PictureFormat,
    prompts: dict[int, BatchPrompt],
    tmp_path: Path,
) -> None:
    found = load_dataset("webdataset", data_files=[str(path) for path in sorted(output.glob("*.tar"))])
    assert len(found) == PICTURES
    for row in found:
        record = row["json"]
        wanted = pixels_of(prompts[record["row"]], record["rank"], picture_format)
        assert record["prompt"] == prompts[record["row"]].prompt
        np.testing.assert_array_equal(np.asarray(row[picture_format.value].convert("RGB")), wanted)
    unpacked = tmp_path / "unpacked"
    for path in sorted(output.glob("*.tar")):
        with tarfile.open(path) as tar:
            tar.extractall(unpacked, filter="data")
    lines = [
        {"file_name": f"{path.stem}.{picture_format.value}", **json.loads(path.read_text())}
        for path in sorted(unpacked.glob("*.json"))
    ]
    (unpacked / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    folder = load_dataset("imagefolder", data_dir=str(unpacked))
    assert len(folder) == PICTURES
    assert {row["prompt"] for row in folder} == {prompt.prompt for row, prompt in prompts.items() if row != 5}
    for row in folder:
        wanted = pixels_of(prompts[row["row"]], row["rank"], picture_format)
        np.testing.assert_array_equal(np.asarray(row["image"].convert("RGB")), wanted)


def test_all_descriptions_have_the_same_keys(tmp_path: Path, load_dataset: Any) -> None:
    content = (
        b'{"prompt": "a fox"}\n' * 8
        + b'{"prompt": "a cat", "vary": true, "diversity": 0.5, "layout_share": 0.25, "layout_temperature": 2}\n'
    )
    [shard] = plan_of(content, "jsonl").shards()
    with TarWriter(tmp_path / "0.tar", PictureFormat.PNG, model="tiny", revision="0") as tar:
        for prompt in shard.prompts[:-1]:
            assert tar.add(prompt, draw(prompt))[0].wording is None
        pictures = [replace(picture, wording="a black cat") for picture in draw(shard.prompts[-1])]
        assert tar.add(shard.prompts[-1], pictures, "a kitten")[0].wording == "a black cat"
    with (tmp_path / "0.tar").open("rb") as file:
        records = [picture.record for picture in read_tar("0.tar", file)]
    reworded = [record.effective_prompt != record.prompt and record.effective_prompt for record in records]
    assert reworded == [False] * 16 + ["a kitten"] * 2
    assert [record.sampling for record in records[::2]] == [prompt.sampling for prompt in shard.prompts]
    rows = [row["json"] for row in load_dataset("webdataset", data_files=[str(tmp_path / "0.tar")])]
    assert [row["effective_prompt"] for row in rows] == ["a fox"] * 16 + ["a kitten"] * 2
    assert [row["wording"] for row in rows] == ["a fox"] * 16 + ["a black cat"] * 2
    assert [row["sampling"]["layout_share"] for row in rows] == [0.0] * 16 + [0.25] * 2
    assert len({tuple(row) for row in rows}) == 1
