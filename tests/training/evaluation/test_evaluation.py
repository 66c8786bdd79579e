"""Measuring a model: the prompts, the figures, the page and the card."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import UInt8
from PIL import Image

from harness.paths import SAMPLES
from smalti.cli import run
from smalti.errors import InvalidInputError
from smalti.models import bart, vqgan
from smalti.parameters import Counts, SamplingParameters
from smalti.pipeline import Pipeline
from smalti.registry.folder import ModelFolder
from smalti.registry.verify import find_problems
from smalti.testing.clip import tiny_clip
from smalti.testing.model import TINY_VQGAN, random_parameters, tiny_bart_config
from smalti.testing.tokenizer import tiny_tokenizer_files
from smalti.training.data.world.attributes import Attributes, Figure
from smalti.training.data.world.composition import World, compose
from smalti.training.data.world.description import NATURAL, PLAIN, load_description
from smalti.training.data.world.lookalikes import acceptable_colours
from smalti.training.data.world.sprites import Sprites, make_sprites
from smalti.training.evaluation.measuring import Quality, _gain, _kind_result, generate_candidates
from smalti.training.evaluation.page import BEGIN, END
from smalti.training.evaluation.questions import PROMPT_KINDS, ask, questions, sheet_questions
from smalti.training.evaluation.recipe import load_recipe
from smalti.training.evaluation.scoring import Correctness, Scorer, paired_difference, select, shares, wilson
from smalti.training.judge.network import Verdicts, counts_of
from smalti.training.judge.samples import Region
from smalti.training.loop.run_folder import RunFolder
from smalti.training.trainers.judge import JudgeObjective, JudgeSettings

_UNSEEN = "Nobody has looked at these pictures yet."
JUDGE = """
trains = "judge"
steps = 2
batch_size = 4
[model]
width = 16
"""
SHEETS = """
seen = [
    { things = ["box"], colours = ["natural"] },
    { things = ["ball", "star"], colours = ["blue", "natural"], background = "gray" },
]
held_out = [
    { things = ["ball"], colours = ["red"], size = "small" },
]
"""


@pytest.fixture(scope="module")
def world() -> World:
    description = load_description(SAMPLES / "world.json")
    return World(description, make_sprites(SAMPLES / "packages", description, 64))


@pytest.fixture(scope="module")
def shipped() -> World:
    """The shipped world with black squares for its things."""
    description = load_description()
    things, styles = (
        tuple(each.word for each in group) for group in (description.things, description.styles)
    )
    pixels = np.zeros((len(things), len(styles), 8, 8, 4), np.uint8)
    pixels[..., 3] = 255
    return World(description, Sprites(things, styles, 64, pixels))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, world: World) -> Path:
    """A data folder, a judge's run, prompts, and a tiny model for pictures of 64 pixels."""
    folder = tmp_path_factory.mktemp("evaluation")
    (folder / "data").mkdir()
    (folder / "data" / "world.json").write_bytes((SAMPLES / "world.json").read_bytes())
    make_sprites(SAMPLES / "packages", world.description, 64).save(folder / "data" / "sprites.npz")
    (folder / "sheets.toml").write_text(SHEETS)
    (folder / "judge.toml").write_text(JUDGE)
    kept = RunFolder.create(folder / "judge", folder / "judge.toml")
    objective = JudgeObjective(
        JudgeSettings.check(steps=2, batch_size=4, model={"width": 16}).model, counts_of(world.description)
    )
    kept.save_best(1, objective.initialize()[0], 1.0)
    kept.append({"step": 1, "train/loss": 3.0, "train/pictures_per_second": 8.0})
    kept.append({"step": 2, "train/loss": 2.0, "train/pictures_per_second": 4.0})
    kept.close()
    (folder / "judge" / "world.json").write_bytes((SAMPLES / "world.json").read_bytes())

    model = folder / "model"
    tokenizer = replace(TINY_VQGAN, resolution=64)
    config = tiny_bart_config(tiny_tokenizer_files(model / "bart"), image_length=tokenizer.tokens)
    bart.DalleBart(config, random_parameters(bart.parameter_shapes(config), 0)).save(model / "bart")
    vqgan.VQGAN(tokenizer, random_parameters(vqgan.parameter_shapes(tokenizer), 0)).save(model / "vqgan")
    tiny_clip(model / "clip", 0)
    (model / "credits.md").write_text("## Pictures and words\n\nDrawn by Somebody.\n")
    ModelFolder.create(model, name="model", licence="Apache-2.0", defaults=Counts(n=3, candidates=4))
    return folder


class Oracle:
    """A judge that knows what each picture shows."""

    def __init__(self, world: World, known: Sequence[Attributes]) -> None:
        self.world = world
        self.known = {compose(world, attributes).tobytes(): attributes for attributes in known}

    def look(
        self, pictures: UInt8[np.ndarray, "pictures height width 3"], region: Region = "whole"
    ) -> Verdicts:
        drawn = [self.known[picture.tobytes()] for picture in pictures]
        figures = [attributes.figures[1 if region == "right" else 0] for attributes in drawn]
        return Verdicts(
            np.array([self.world.things.index(figure.thing) for figure in figures]),
            np.array([self.world.colours.index(figure.colour) for figure in figures]),
            np.array([self.world.backgrounds.index(attributes.background) for attributes in drawn]),
        )


def judged(world: World, question_of: Attributes, drawn: Sequence[Attributes]) -> Correctness:
    question = ask(world, question_of.figures, question_of.background)
    pictures = np.stack([compose(world, attributes) for attributes in drawn])
    return Scorer(Oracle(world, drawn), world, acceptable_colours(world))(question, pictures)


def test_pictures_of_one_thing_are_scored(world: World) -> None:
    asked = Attributes((Figure("box", "green"),), "plain", "red")
    right = judged(
        world,
        asked,
        [
            asked,
            replace(asked, style="round", size="small", offset=(8, 0)),
            replace(asked, figures=(Figure("box", "blue"),)),
            replace(asked, figures=(Figure("star", "green"),)),
            replace(asked, background="gray"),
            replace(asked, figures=(Figure("tree", "red"),), background=PLAIN),
        ],
    )
    assert right.thing.tolist() == [True, True, True, False, True, False]
    assert right.colour.tolist() == [True, True, False, True, True, False]
    assert right.background.tolist() == [True, True, True, True, False, False]
    assert right.everything.tolist() == [True, True, False, False, False, False]


def test_colours_that_look_alike_are_both_right(world: World) -> None:
    natural, red, blue = (
        Attributes((Figure("ball", colour),), "plain") for colour in (NATURAL, "red", "blue")
    )
    assert judged(world, natural, [natural, red, blue]).colour.tolist() == [True, True, False]
    assert judged(world, red, [natural, red, blue]).colour.tolist() == [True, True, False]


def test_each_of_two_things_must_be_right_on_its_own_side(world: World) -> None:
    asked = Attributes((Figure("box"), Figure("star", "blue")), "plain", "gray", "small")
    right = judged(
        world,
        asked,
        [
            asked,
            replace(asked, figures=asked.figures[::-1]),
            replace(asked, figures=(Figure("box"), Figure("star", "green"))),
        ],
    )
    assert right.thing.tolist() == [True, False, True]
    assert right.colour.tolist() == [True, False, False]
    assert right.background.tolist() == [True, True, True]


def test_shares_equal_those_computed_by_hand() -> None:
    def right(*everything: int) -> Correctness:
        whole = np.array(everything, bool)
        return Correctness(whole, np.ones_like(whole), np.ones_like(whole))

    prompts = [(right(1, 0, 1, 0), [0.9, 0.1, 0.8, 0.2]), (right(0, 0, 1, 1), [0.4, 0.9, 0.3, 0.6])]
    values = {}
    for selection in ("all", "best", "first", "worst"):
        chosen = [(each, select(scores, selection, 2)) for each, scores in prompts]
        values[selection] = shares(chosen).everything.value
        assert shares(chosen).colour.value == 1
    # The order by score is 0, 2, 3, 1 and 1, 3, 0, 2.
    assert values == {"all": 0.5, "best": (1 + 0.5) / 2, "first": 0.5, "worst": (0 + 0.5) / 2}


def test_intervals() -> None:
    interval = wilson(np.array([1.0] * 8 + [0.0] * 2))
    # Computed by hand for 8 of 10.
    assert (interval.value, interval.low, interval.high) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    certain = wilson(np.ones(10))
    assert certain.high == pytest.approx(1)
    assert certain.low == pytest.approx(0.7225, abs=1e-4)
    # 0.1 with a deviation of 0.2 over 400 prompts: its own is 0.01.
    differences = np.tile([0.3, -0.1], 200)
    difference = paired_difference(differences)
    assert difference.value == pytest.approx(0.1)
    assert (difference.low, difference.high) == pytest.approx((0.1 - 0.0196, 0.1 + 0.0196), abs=0.002)


def test_questions_match_their_kind(shipped: World) -> None:
    held_out = {thing.word: thing.held_out for thing in shipped.description.things}
    for kind in PROMPT_KINDS:
        asked = questions(shipped, kind, 120)
        assert asked[:30] == questions(shipped, kind, 30)
        assert {question.figures[0].thing for question in asked} == set(shipped.things)
        for question in asked:
            colours = [figure.colour == held_out[figure.thing].colour for figure in question.figures]
            grounds = [
                question.background == held_out[figure.thing].background for figure in question.figures
            ]
            assert any(colours) == (kind == "held_out_colour")
            assert any(grounds) == (kind == "held_out_background")
            assert len(question.figures) == (2 if kind == "pairs" else 1)
            if kind == "natural":
                assert (question.figures[0].colour, question.background) == (NATURAL, PLAIN)
    assert len({question.prompt for question in questions(shipped, "seen", 120)}) > 100


def test_prompts_name_what_the_picture_must_show(world: World) -> None:
    def prompt(*figures: Figure, background: str = PLAIN, size: str = "big") -> str:
        return ask(world, figures, background, size).prompt  # type: ignore[arg-type]

    assert prompt(Figure("box")) == "a box"
    assert prompt(Figure("unit", "red"), background="gray") == "a red unit on a gray background"
    assert prompt(Figure("grapes"), size="small") == "small grapes"
    assert prompt(Figure("grapes", "blue"), Figure("unit"), size="small") == "blue grapes and a unit"
    with pytest.raises(InvalidInputError, match="'cow' must be a thing of the world"):
        prompt(Figure("cow"))


def test_the_shipped_sheets_are_half_seen_and_half_held_out(shipped: World, tmp_path: Path) -> None:
    sides = sheet_questions(shipped)
    assert {side: len(asked) for side, asked in sides.items()} == {"seen": 12, "held_out": 12}
    prompts = [question.prompt for asked in sides.values() for question in asked]
    assert "a purple cat" in prompts
    assert len(set(prompts)) == 24
    wrong = tmp_path / "wrong.toml"
    wrong.write_text('seen = [{ things = ["cat"], colours = ["purple"] }]\nheld_out = []')
    with pytest.raises(InvalidInputError, match="seen: 'a purple cat' belongs in the other set"):
        sheet_questions(shipped, wrong)
    wrong.write_text("seen = 3\nheld_out = []")
    with pytest.raises(InvalidInputError, match=r"wrong\.toml: seen: "):
        sheet_questions(shipped, wrong)


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
    assert (quality.revision, quality.counts) == (model.revision, Counts(n=3, candidates=4))
    assert [kind.prompts for kind in quality.kinds.values()] == [2] * 5
    assert quality.reconstruction.psnr > 0
    text = page.read_text()
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
    assert run(evaluate) == 0
    assert page.read_text() == text.replace(_UNSEEN, "Blobs.\n\nAll of them.")

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
    assert {row[-1] for row in rows} == {"0.000"}
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
        ({"--sheet-prompts": "none.toml"}, "cannot be read as TOML"),
        ({"--model": "data"}, "not a model folder"),
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


def test_the_value_of_the_choice_is_counted_by_prompt() -> None:
    def right(*everything: int) -> Correctness:
        whole = np.array(everything, bool)
        return Correctness(whole, whole, whole)

    scores = np.array([0.9, 0.8, 0.2, 0.1])
    judged = [(right(1, 1, 0, 0), scores), (right(1, 1, 1, 1), scores), (right(0, 1, 1, 0), scores)]
    gains = [_gain(each, scores, 2) for each, scores in judged]
    assert gains == [0.5, 0, 0]
    result = _kind_result(judged, gains, 2)
    assert result.choice.value == pytest.approx(0.5 / 3)
    assert result.shares["best"].everything.value == pytest.approx(2.5 / 3)
    assert result.shares["worst"].everything.value == pytest.approx(1.5 / 3)
    # All candidates are kept, so none is left out.
    assert "worst" not in _kind_result(judged, gains, 4).shares
