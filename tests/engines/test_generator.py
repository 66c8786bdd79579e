"""The generator: agreement with the whole model, and independence of candidates."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from smalti.engines.encoding import Encoding
from smalti.engines.generator.engine import GeneratorEngine
from smalti.engines.generator.requests import Candidate
from smalti.engines.generator.sampling import guide, sample, seed_words, uniforms
from smalti.errors import ConfigError
from smalti.models import bart
from smalti.models.bart import DalleBart
from smalti.parameters import SamplingParameters
from smalti.pipeline import Pipeline
from smalti.testing.model import random_parameters, tiny_bart_config

GREEDY = SamplingParameters(temperature=0, guidance_scale=10)
VARIED = SamplingParameters(temperature=0.9, guidance_scale=3, top_k=30, top_p=0.95)


@pytest.fixture(scope="module")
def golden_engine(golden: Path) -> tuple[GeneratorEngine, DalleBart, Any]:
    folder = golden / "dallebart_scan"
    model, expected = DalleBart.load(folder), np.load(folder / "expected.npz")
    unconditional = Encoding(expected["uncond_encoder_hidden"][0], expected["uncond_attention_mask"][0])
    return GeneratorEngine.of(model, unconditional, slots=4), model, expected


def prompt(expected: Any, row: int) -> Encoding:
    return Encoding(expected["encoder_hidden"][row], expected["attention_mask"][row])


@pytest.mark.parametrize("row", [0, 1, 2])
def test_greedy_tokens_equal_those_of_the_original(
    golden_engine: tuple[GeneratorEngine, DalleBart, Any], row: int
) -> None:
    engine, _, expected = golden_engine
    drawn = engine.generate(prompt(expected, row), [Candidate(0, 0, GREEDY)])
    np.testing.assert_array_equal(drawn[0], expected["greedy_scale10"][row])


def test_sampled_tokens_equal_those_of_the_whole_model(
    golden_engine: tuple[GeneratorEngine, DalleBart, Any],
) -> None:
    """Compares with tokens that are sampled without caches, from the logits of all positions."""
    engine, model, expected = golden_engine
    drawn = engine.generate(prompt(expected, 0), [Candidate(99, 3, VARIED)])[0]
    start = model.config.decoder_start_token_id
    seeds = jnp.asarray(seed_words(99))[None]
    for position in range(model.config.image_length):
        ids = np.array([[start, *drawn[:-1]]], np.int32)
        conditional, unconditional = (
            model.logits(expected[f"{which}encoder_hidden"][:1], expected[f"{which}attention_mask"][:1], ids)[
                :, position, :start
            ]
            for which in ("", "uncond_")
        )
        guided = guide(conditional, unconditional, jnp.array([VARIED.guidance_scale]))
        uniform = uniforms(seeds, jnp.array([3]), jnp.array([position]))
        token = sample(
            guided,
            uniform,
            jnp.array([VARIED.temperature]),
            jnp.array([VARIED.top_k]),
            jnp.array([VARIED.top_p]),
        )
        assert token[0] == drawn[position]


def test_tokens_do_not_depend_on_neighbours_or_slots(
    golden_engine: tuple[GeneratorEngine, DalleBart, Any],
) -> None:
    engine, _, expected = golden_engine
    together = engine.generate(prompt(expected, 1), [Candidate(7, index, VARIED) for index in range(11)])
    assert len({tuple(row) for row in together.tolist()}) == 11
    for index in (0, 5, 10):
        alone = engine.generate(prompt(expected, 1), [Candidate(7, index, VARIED)])
        np.testing.assert_array_equal(alone[0], together[index])
    backwards = engine.generate(
        prompt(expected, 1), [Candidate(7, index, VARIED) for index in reversed(range(11))]
    )
    np.testing.assert_array_equal(backwards[::-1], together)


def test_each_candidate_has_its_own_parameters(
    golden_engine: tuple[GeneratorEngine, DalleBart, Any],
) -> None:
    engine, _, expected = golden_engine
    mixed = engine.generate(prompt(expected, 0), [Candidate(1, 0, VARIED), Candidate(1, 0, GREEDY)])
    np.testing.assert_array_equal(mixed[1], expected["greedy_scale10"][0])
    np.testing.assert_array_equal(
        mixed[0], engine.generate(prompt(expected, 0), [Candidate(1, 0, VARIED)])[0]
    )


def test_each_candidate_has_its_own_encoding(golden_engine: tuple[GeneratorEngine, DalleBart, Any]) -> None:
    engine, _, expected = golden_engine
    prompts = [prompt(expected, row) for row in range(3)]
    # More candidates than slots, so that some wait.
    places = (2, 0, 1, 0, 2, 2, 1)
    mixed = engine.generate(
        prompts, [Candidate(7, index, VARIED, place) for index, place in enumerate(places)]
    )
    for index, place in enumerate(places):
        alone = engine.generate(prompts[place], [Candidate(7, index, VARIED)])
        np.testing.assert_array_equal(mixed[index], alone[0])
    assert not np.array_equal(mixed[1], engine.generate(prompts[1], [Candidate(7, 1, VARIED)])[0])


def test_first_tokens_are_sampled_with_the_values_of_the_layout(
    golden_engine: tuple[GeneratorEngine, DalleBart, Any],
) -> None:
    engine, model, expected = golden_engine
    greedy_first = VARIED.replace(layout_share=0.5, layout_temperature=0, layout_guidance_scale=10)
    values = [
        VARIED,
        greedy_first,
        greedy_first.replace(layout_share=1),
        greedy_first.replace(layout_share=0),
        # The same values as after the layout.
        VARIED.replace(layout_share=0.5, layout_temperature=0.9, layout_guidance_scale=3),
        # Guidance alone.
        VARIED.replace(layout_share=0.5, layout_temperature=0.9, layout_guidance_scale=30),
    ]
    varied, half, whole, none, same, guided = engine.generate(
        prompt(expected, 0), [Candidate(1, 0, each) for each in values]
    )
    greedy, middle = expected["greedy_scale10"][0], model.config.image_length // 2
    np.testing.assert_array_equal(half[:middle], greedy[:middle])
    assert not np.array_equal(half[middle:], greedy[middle:])
    np.testing.assert_array_equal(whole, greedy)
    np.testing.assert_array_equal(none, varied)
    np.testing.assert_array_equal(same, varied)
    assert not np.array_equal(guided[:middle], varied[:middle])


def test_nothing_compiles_for_another_request(
    golden_engine: tuple[GeneratorEngine, DalleBart, Any], compilations: list[str]
) -> None:
    engine, _, expected = golden_engine
    engine.generate(prompt(expected, 0), [Candidate(0, 0, GREEDY)])
    compilations.clear()
    other = SamplingParameters(
        temperature=0.33, guidance_scale=1, top_k=7, top_p=0.5, layout_share=0.3, layout_temperature=0.7
    )
    engine.generate(prompt(expected, 2), [Candidate(2**62, index, other) for index in range(6)])
    assert compilations == []


def test_progress_counts_the_tokens_of_all_candidates(
    golden_engine: tuple[GeneratorEngine, DalleBart, Any],
) -> None:
    engine, _, expected = golden_engine
    reported: list[tuple[int, int]] = []
    engine.generate(
        prompt(expected, 0),
        [Candidate(0, i, GREEDY) for i in range(6)],
        lambda done, of: reported.append((done, of)),
    )
    assert reported == [(done, 96) for done in range(4, 97, 4)]


def test_interrupted_engine_can_generate_again(golden_engine: tuple[GeneratorEngine, DalleBart, Any]) -> None:
    engine, _, expected = golden_engine

    def interrupt(done: int, of: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate(prompt(expected, 0), [Candidate(0, 0, GREEDY)], interrupt)
    drawn = engine.generate(prompt(expected, 0), [Candidate(0, 0, GREEDY)])
    np.testing.assert_array_equal(drawn[0], expected["greedy_scale10"][0])


def test_no_candidates_give_no_tokens(golden_engine: tuple[GeneratorEngine, DalleBart, Any]) -> None:
    engine, _, expected = golden_engine
    assert engine.generate(prompt(expected, 0), []).shape == (0, 16)


def test_picture_that_is_not_square_is_refused(pipeline: Pipeline) -> None:
    config = tiny_bart_config(300, image_length=15)
    model = DalleBart(config, random_parameters(bart.parameter_shapes(config), 0))
    with pytest.raises(ConfigError, match="image_length: 15 tokens"):
        GeneratorEngine.of(model, pipeline.encoder.unconditional)
