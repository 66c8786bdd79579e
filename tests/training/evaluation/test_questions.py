"""The prompts that a model is asked."""

from pathlib import Path

import numpy as np
import pytest

from smalti.errors import InvalidInputError
from smalti.training.data.world.attributes import Figure
from smalti.training.data.world.composition import World
from smalti.training.data.world.description import NATURAL, PLAIN, load_description
from smalti.training.data.world.sprites import Sprites
from smalti.training.evaluation.questions import (
    PROMPT_KINDS,
    ask,
    is_held_out,
    kinds_of,
    questions,
    sheet_questions,
)


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
    held_out = {
        "held_out_colour": [{"colour"}],
        "held_out_background": [{"background"}],
        "held_out_pairs": [{"colour"}, {"background"}],
        "held_out_relations": [{"relation"}],
        "held_out_counts": [{"count"}],
    }
    assert kinds_of(shipped) == PROMPT_KINDS
    for kind in PROMPT_KINDS:
        asked = questions(shipped, kind, 40)
        assert asked[:10] == questions(shipped, kind, 10)
        for question in asked:
            aspects = shipped.held_out_aspects(question.attributes(shipped.styles[0])) - {"style"}
            assert aspects in held_out.get(kind, [set()]), question
            assert is_held_out(shipped, question) == (kind in held_out)
            assert len(question.figures) == (2 if "pairs" in kind or "relations" in kind else 1)
            if kind == "natural":
                assert (question.figures[0].colour, question.background) == (NATURAL, PLAIN)
    assert {question.count for question in questions(shipped, "counts", 8)} == {1, 2, 3, 4}
    assert {question.relation for question in questions(shipped, "relations", 8)} == {"above", "in front of"}
    assert {question.relation for question in questions(shipped, "pairs", 8)} == {"beside"}
    assert {question.figures[0].thing for question in questions(shipped, "seen", 400)} == set(shipped.things)
    assert len({question.prompt for question in questions(shipped, "seen", 120)}) > 100


def test_a_world_has_only_the_kinds_that_it_holds_out(world: World) -> None:
    things = tuple(
        thing.model_copy(update={"held_out": thing.held_out.model_copy(update={"count": None})})
        for thing in world.description.things
    )
    other = World.__new__(World)
    other.__dict__.update(world.__dict__, description=world.description.model_copy(update={"things": things}))
    assert set(PROMPT_KINDS) - set(kinds_of(other)) == {"held_out_counts"}


def test_prompts_name_what_the_picture_must_show(world: World) -> None:
    def prompt(*figures: Figure, **more: object) -> str:
        return ask(world, figures, **more).prompt  # type: ignore[arg-type]

    assert prompt(Figure("box")) == "a box"
    assert prompt(Figure("unit", "red"), background="gray") == "a red unit on a gray background"
    assert prompt(Figure("grapes"), size="small") == "small grapes"
    assert prompt(Figure("grapes", "blue"), Figure("unit"), size="small") == "blue grapes and a unit"
    assert prompt(Figure("box", "red"), size="small", count=3) == "three red boxes"
    assert prompt(Figure("box"), Figure("unit"), size="small", relation="above") == "a box above a unit"
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
