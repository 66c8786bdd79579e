"""The prompts that a model is asked."""

from pathlib import Path

import numpy as np
import pytest

from smalti.errors import InvalidInputError
from smalti.training.data.world.attributes import Figure
from smalti.training.data.world.composition import World
from smalti.training.data.world.description import NATURAL, PLAIN, base_colour, load_description
from smalti.training.data.world.sprites import Sprites
from smalti.training.evaluation.questions import PROMPT_KINDS, ask, questions, sheet_questions


@pytest.fixture(scope="module")
def shipped() -> World:
    """The shipped world with squares for its things."""
    description = load_description()
    things, styles = (
        tuple(each.word for each in group) for group in (description.things, description.styles)
    )
    pixels = np.zeros((len(things), len(styles), 8, 8, 4), np.uint8)
    pixels[:] = (0, 110, 120, 255)
    return World(description, Sprites(things, styles, 64, pixels))


def test_questions_match_their_kind(shipped: World) -> None:
    held_out = {thing.word: thing.held_out for thing in shipped.description.things}
    for kind in PROMPT_KINDS:
        asked = questions(shipped, kind, len(shipped.things))
        assert asked[:30] == questions(shipped, kind, 30)
        assert {question.figures[0].thing for question in asked} == set(shipped.things)
        for question in asked:
            colours = [
                base_colour(figure.colour) == held_out[figure.thing].colour for figure in question.figures
            ]
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
    def prompt(*figures: Figure, background: str = PLAIN, size: str = "usual") -> str:
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
