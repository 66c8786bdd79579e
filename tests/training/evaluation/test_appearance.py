"""How pictures look beside real ones, measured on pictures whose figures are known."""

import numpy as np
import pytest

from smalti.models.vqgan import VQGAN
from smalti.training.data.world.attributes import Figure
from smalti.training.data.world.composition import CompositionDataset, World
from smalti.training.data.world.description import NATURAL
from smalti.training.evaluation.appearance import Appearance, AppearanceMeter
from smalti.training.evaluation.candidates import RankedCandidates
from smalti.training.evaluation.features import FeatureNetwork
from smalti.training.evaluation.questions import Question, is_held_out, questions
from smalti.training.evaluation.real_pictures import pictures_of, training_pictures

PROMPTS = 6
CANDIDATES = 4


@pytest.fixture(scope="module")
def features() -> FeatureNetwork:
    return FeatureNetwork.load()


@pytest.fixture(scope="module")
def asked(world: World) -> list[Question]:
    return questions(world, "held_out_colour", PROMPTS)


def measured(
    features: FeatureNetwork, world: World, network: VQGAN, drawn: list[RankedCandidates]
) -> Appearance:
    meter = AppearanceMeter(features, world, PROMPTS)
    for candidates in drawn:
        meter.add(candidates, list(range(CANDIDATES)))
    return meter.result(network)


def drawn(question: Question, pixels: np.ndarray, tokens: np.ndarray | None = None) -> RankedCandidates:
    tokens = np.arange(CANDIDATES)[:, None] if tokens is None else tokens
    scores, features = np.zeros(len(pixels), np.float32), np.ones((len(pixels), 1), np.float32)
    return RankedCandidates(question, tokens, pixels, scores, features)


def test_real_pictures_look_real(
    features: FeatureNetwork, world: World, network: VQGAN, asked: list[Question]
) -> None:
    looks = measured(
        features,
        world,
        network,
        [drawn(question, pictures_of(world, question, 50_000, CANDIDATES)) for question in asked],
    )
    assert looks.distinct.value == CANDIDATES
    assert looks.sharpness.share == pytest.approx(1, abs=0.15)
    assert looks.frechet.pictures == PROMPTS * CANDIDATES
    # The untrained tokenizer loses nearly everything.
    assert looks.frechet.generated < 2 * looks.frechet.real < looks.frechet.tokens
    assert looks.variety.value > 0


def test_training_pictures_are_copies_and_equal_candidates_have_no_variety(
    features: FeatureNetwork, world: World, network: VQGAN, asked: list[Question]
) -> None:
    known = np.concatenate(list(training_pictures(world, PROMPTS)))
    same = np.zeros((CANDIDATES, 1), int)
    looks = measured(
        features,
        world,
        network,
        [
            drawn(question, np.repeat(picture[None], CANDIDATES, 0), same)
            for question, picture in zip(asked, known, strict=True)
        ],
    )
    assert looks.copies is not None
    assert looks.copies.value == 1
    assert looks.variety.value == pytest.approx(0, abs=1e-3)
    assert looks.distinct.value == 1


def test_real_pictures_show_what_the_prompt_names(world: World) -> None:
    question = next(each for each in questions(world, "pairs", 20) if each.background != "white")
    pictures = pictures_of(world, question, 0, 3)
    corners = pictures[:, 0, 0]
    assert (corners == corners[0]).all()
    assert not (corners[0] == 255).all()
    assert (pictures[0] != pictures_of(world, question, 1000, 3)[0]).any()


def test_only_combinations_that_training_never_shows_are_held_out(world: World) -> None:
    thing = world.description.things[0]
    assert is_held_out(world, Question("", (Figure(thing.word, thing.held_out.colour),), "white"))
    assert not is_held_out(world, Question("", (Figure(thing.word, NATURAL),), "white"))


def test_training_pictures_are_those_of_the_split(world: World) -> None:
    batches = list(training_pictures(world, 300))
    assert [len(batch) for batch in batches] == [256, 44]
    np.testing.assert_array_equal(batches[1], CompositionDataset(world, 7, "train").batch(256, 44)[0])
