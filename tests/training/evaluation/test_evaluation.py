"""Measuring a model: the commands, the page and the card."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smalti.cli import run
from smalti.errors import InvalidInputError
from smalti.parameters import Defaults, SamplingParameters
from smalti.pipeline import Pipeline
from smalti.registry.folder import ModelFolder
from smalti.registry.verify import find_problems
from smalti.training.data.world.attributes import Figure
from smalti.training.data.world.composition import World
from smalti.training.evaluation.candidates import generate_candidates
from smalti.training.evaluation.goals import GOALS
from smalti.training.evaluation.measuring import Quality
from smalti.training.evaluation.page import BEGIN, END
from smalti.training.evaluation.questions import ask
from smalti.training.evaluation.recipe import load_recipe

_UNSEEN = "Nobody has looked at these pictures yet."


def test_prompts_generated_together_equal_those_generated_alone(folder: Path, world: World) -> None:
    pipeline = Pipeline.load(folder / "model", slots=3)
    asked = [ask(world, (Figure(thing),)) for thing in ("box", "ball", "star")]
    sampling = SamplingParameters(guidance_scale=2)
    for seed, drawn in zip(
        (5, 6, 7), generate_candidates(pipeline, asked, sampling, 2, (5, 6, 7)), strict=True
    ):
        alone = pipeline.generate(drawn.question.prompt, 2, 2, seed, guidance_scale=2)
        by_candidate = sorted(alone, key=lambda picture: picture.candidate)
        np.testing.assert_array_equal(
            drawn.pixels, np.stack([np.asarray(each.image) for each in by_candidate])
        )
        np.testing.assert_allclose(drawn.scores, [each.score for each in by_candidate], rtol=1e-4)


def words_for(folder: Path) -> list[str]:
    """Options that all commands have."""
    return [
        *("--model", f"{folder}/model", "--judge", f"{folder}/judge"),
        *("--data", f"{folder}/data", "--slots", "8"),
    ]


@pytest.mark.slow
def test_the_page_and_the_card(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = words_for(folder)
    evaluate = [
        "evaluate", *words, "--out", f"{tmp_path}", "--prompts-per-kind", "2",
        "--sheet-prompts", f"{folder}/sheets.toml",
    ]  # fmt: skip
    assert run(evaluate) == 0
    assert "of the best 3 are right" in capsys.readouterr().out
    page = tmp_path / "quality.md"
    quality = Quality.model_validate_json((tmp_path / "quality.json").read_text())
    model = ModelFolder.open(folder / "model")
    assert (quality.revision, quality.counts) == (model.revision, Defaults(n=3, candidates=4))
    assert [kind.prompts for kind in quality.kinds.values()] == [2] * 5
    assert quality.reconstruction.psnr > 0
    assert quality.appearance.frechet.pictures == 3 * 10
    text = page.read_text()
    assert "| PSNR of the image tokenizer | at least 28 dB |" in text
    assert "before" not in text
    goals = text.partition("## Goals")[2].partition("##")[0]
    assert goals.count("| yes |") + goals.count("| no |") == len(GOALS)
    for part in (
        model.revision,
        "a box (",
        "blue grapes" if "grapes" in text else "##",
        "Nobody has looked",
        "## The judge",
    ):
        assert part in text
    assert "a small red ball" in text
    # Two grids of three pictures, two by two, in a row of four.
    with Image.open(tmp_path / "pictures/quality/seen.png") as sheet:
        assert sheet.size == (4 * (130 + 10) + 10, 130 + 34 + 10)

    # The section written by hand is kept, the rest is made again.
    page.write_text(
        text.replace("Nobody has looked at these pictures yet.", "Blobs.\n\nAll of them.").replace(
            "CLIP's", "X"
        )
    )
    (tmp_path / "earlier.json").write_text(
        json.dumps({"model": "old", "revision": "r1", "date": "2026-01-02", "size": 2**21})
    )
    assert run([*evaluate, "--before", f"{tmp_path}/earlier.json"]) == 0
    again = page.read_text()
    assert "Blobs.\n\nAll of them." in again
    assert _UNSEEN not in again
    # The figures are the same, and the earlier ones stand beside them.
    assert again.partition("## Sheets")[2] == text.partition("## Sheets")[2]
    assert '"Before" is `old` of revision `r1`, measured 2026-01-02.' in again
    assert "| size of the model | at most 24 MiB | 2.0 MiB |" in again

    card = ["card", "--model", f"{folder}/model", "--data", f"{folder}/data", "--evaluated", f"{tmp_path}"]
    assert run([*card, "--run", f"{folder}/judge"]) == 0
    told = (folder / "model" / "README.md").read_text()
    for part in (
        "Drawn by Somebody",
        "license: apache-2.0",
        "Blobs.",
        "box",
        "2 of 2 | 8 |",
        'trains = "judge"',
    ):
        assert part in told
    assert (folder / "model" / "samples.png").is_file()
    assert ModelFolder.open(folder / "model").revision == model.revision
    assert find_problems(model) == []

    figures = json.loads((tmp_path / "quality.json").read_text())
    (tmp_path / "quality.json").write_text(json.dumps({**figures, "revision": "sha256:" + 64 * "0"}))
    capsys.readouterr()
    assert run([*card, "--run", f"{folder}/judge"]) == 2
    assert "evaluate the model again" in capsys.readouterr().err
    assert (folder / "model" / "README.md").read_text() == told

    page.write_text(text.replace(END, ""))
    assert run(evaluate) == 2
    assert "has lost the marks around the section written by hand" in capsys.readouterr().err
    assert BEGIN in page.read_text()


def test_a_sweep_reports_the_shares_of_each_choice(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = words_for(folder)
    grid = ["--guidance-scale", "1", "--guidance-scale", "3", "--temperature", "0", "--prompts-per-kind", "1"]
    assert run(["sweep", *words, *grid, "--out", f"{tmp_path}/sweep.md"]) == 0
    table = capsys.readouterr().out
    assert (tmp_path / "sweep.md").read_text() == table
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    assert sorted(row[:3] for row in rows) == [["1", "0", "50"], ["3", "0", "50"]]
    # At temperature 0 all candidates of a prompt are one picture.
    assert {tuple(row[-2:]) for row in rows} == {("0.000", "1.0")}
    variety = ["--layout-share", "0.5", "--diversity", "0", "--diversity", "0.5", "--vary"]
    assert run(["sweep", *words, *variety, "--prompts-per-kind", "1"]) == 0
    header, _, *lines = capsys.readouterr().out.splitlines()
    assert "| diversity |" in header
    assert "layout share" not in header  # Only one value was tried.
    assert sorted(line.split(" | ")[3] for line in lines) == ["0", "0.5"]
    assert run(["sweep", *words, "--temperature", "-1"]) == 2
    assert "temperature" in capsys.readouterr().err


def test_the_minutes_of_a_run_follow_from_its_log(folder: Path) -> None:
    recipe = load_recipe(folder / "judge", tokens=64)
    # Steps of four pictures: one at 8 pictures a second, one at 4.
    assert recipe.minutes == pytest.approx((4 / 8 + 4 / 4) / 60)
    assert (recipe.steps, recipe.of, recipe.pictures) == (2, 2, 8)
    with pytest.raises(InvalidInputError, match="must be the folder of a run"):
        load_recipe(folder / "data", tokens=64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--judge": "data"}, "holds no run"),
        ({"--data": "judge/sheets"}, "has no world"),
        ({"--sheet-prompts": "none.toml"}, "none.toml: cannot be read (No such file or directory)"),
        ({"--model": "data"}, "not a model folder"),
        ({"--before": "none.json"}, "cannot be read"),
        ({"--before": "sheets.toml"}, "must be a quality.json of `smalti evaluate`"),
    ],
)
def test_bad_input_is_reported_in_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, str], message: str
) -> None:
    options = {
        "--model": "model",
        "--judge": "judge",
        "--data": "data",
        "--sheet-prompts": "sheets.toml",
    } | change
    words = [word for option, place in options.items() for word in (option, f"{folder}/{place}")]
    assert run(["evaluate", *words, "--out", f"{tmp_path}/docs"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "docs").exists()
