"""The account of batches finds what is wrong with an output."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from faults.batches.output import problems_of
from faults.batches.submissions import CANDIDATES, BatchSubmission
from smalti.batches import (
    BatchDefaults,
    BatchPrompt,
    FinalState,
    InputFormat,
    PictureFormat,
    ResultPart,
    StorePlace,
    TarWriter,
    finish,
    read_tar,
)
from smalti.parameters import SamplingParameters
from smalti.storage import MemoryStore, digest
from smalti.v1.batch_pb2 import BATCH_STATE_CANCELLED, BATCH_STATE_SUCCEEDED, Batch, BatchProgress
from tests.batches.conftest import plan_of
from tests.batches.drawn import MODEL, REVISION, describe, draw, draw_all

PROMPTS = tuple(f"a fox {number}" for number in range(5))
SHARD = 2
Files = dict[str, bytes]


class Expected:
    """What stands for the engines: the pictures that `draw` makes."""

    def sha256(self, prompt: str, seed: int, candidate: int, of: int) -> str:
        """Returns the checksum of a picture."""
        asked = BatchPrompt(
            row=0, id="0", prompt=prompt, seed=seed, n=of, candidates=of, sampling=SamplingParameters()
        )
        return digest(draw(asked)[candidate].content)


def submission(state: int = BATCH_STATE_SUCCEEDED, **progress: Any) -> BatchSubmission:
    counts = {"prompts": 5, "prompts_drawn": 5, "pictures": 10, **progress}
    end = Batch(state=state, progress=BatchProgress(**counts))  # type: ignore[arg-type]
    return BatchSubmission("foxes", PROMPTS, "", {"shard_prompts": SHARD}, batch="b", end=end)


def output(folder: Path, state: FinalState = "complete", parts: slice = slice(None)) -> Files:
    """Returns the output of a batch of five prompts in three shards."""
    content = "".join(f"{prompt}\n" for prompt in PROMPTS).encode()
    defaults = BatchDefaults(
        default_n=CANDIDATES, default_candidates=CANDIDATES, sampling=SamplingParameters()
    )
    plan = plan_of(content, InputFormat.TEXT, defaults, shard_prompts=SHARD)
    store = MemoryStore()
    place = StorePlace(store, "")
    drawn: list[ResultPart] = draw_all(plan, place, folder)
    finish(place, describe(plan), drawn[parts], state, folder=folder)
    return {info.key: store.get(info.key) for info in store.objects("")}


def problems(files: Files, of: BatchSubmission) -> list[str]:
    references: Any = {REVISION: Expected()}
    return list(problems_of(of, files, references))


def test_output_of_a_batch_that_nothing_has_harmed_is_right(tmp_path: Path) -> None:
    files = output(tmp_path)
    assert sorted(files) == [
        *("00000.tar", "00001.tar", "00002.tar", "_SUCCESS", "manifest/00000.parquet", "summary.json")
    ]
    assert problems(files, submission()) == []


def test_output_of_a_cancelled_batch_has_what_was_drawn(tmp_path: Path) -> None:
    files = output(tmp_path, "cancelled", slice(0, 2))
    cancelled = submission(BATCH_STATE_CANCELLED)
    assert problems(files, cancelled) == ["00002.tar is not named by the manifest"]
    del files["00002.tar"]
    assert problems(files, cancelled) == []


def _remove(name: str) -> Callable[[Files, Path], None]:
    return lambda files, folder: files.update() if files.pop(name) else None


def _other_picture(files: Files, folder: Path) -> None:
    """Writes the pictures of a shard again, one of them with another seed."""
    path = folder / "00001.tar"
    pictures = list(read_tar("00001.tar", io.BytesIO(files["00001.tar"])))
    with TarWriter(path, PictureFormat.PNG, model=MODEL, revision=REVISION) as tar:
        for row in (2, 3):
            record = next(picture.record for picture in pictures if picture.record.row == row)
            asked = BatchPrompt(
                **{
                    name: getattr(record, name)
                    for name in ("row", "id", "prompt", "n", "candidates", "sampling")
                },
                seed=record.seed,
            )
            tar.add(asked, draw(asked if row == 2 else asked.model_copy(update={"seed": 1})))
    files["00001.tar"] = path.read_bytes()


def _truncate(files: Files, folder: Path) -> None:
    files["00000.tar"] = files["00000.tar"][:2000]


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (_remove("_SUCCESS"), "_SUCCESS is missing"),
        (_remove("summary.json"), "summary.json is missing"),
        (_remove("00001.tar"), "00001.tar is missing"),
        (_remove("manifest/00000.parquet"), "the manifest has 0 of 5 rows"),
        (lambda files, folder: files.update({"00007.tar": b""}), "00007.tar is not named by the manifest"),
        (_other_picture, "00001.tar: 000000003-0 is described differently by the manifest"),
        (_other_picture, "00001.tar: 000000003-0 is not the picture of the engines alone"),
        (_truncate, "00000.tar"),
    ],
)
def test_harm_is_found(harm: Callable[[Files, Path], None], said: str, tmp_path: Path) -> None:
    files = output(tmp_path)
    harm(files, tmp_path)
    assert any(said in problem for problem in problems(files, submission()))


def test_other_prompts_and_states_are_found(tmp_path: Path) -> None:
    files = output(tmp_path)
    other = replace(submission(), prompts=(*PROMPTS[:4], "a hare"))
    assert len(problems(files, other)) == 1
    assert problems(files, replace(submission(), failing=frozenset({3}))) == [
        "row 3 is drawn, not failed: None",
    ]
    fewer = problems(files, submission(prompts_drawn=4))
    assert [problem[:15] for problem in fewer] == ["the batch says "]


def test_results_of_other_rows_are_found(tmp_path: Path) -> None:
    files = output(tmp_path)
    of_four = replace(submission(), prompts=PROMPTS[:4])
    assert any("the manifest has the rows" in problem for problem in problems(files, of_four))
