"""The refiner: what its pictures depend on, and what they do not."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from smalti.engines.encoding import Encoding
from smalti.engines.refiner import RefinerEngine, RefinerInput, enlarge, noise_of
from smalti.errors import InvalidInputError, NotSupportedError
from smalti.parameters import Refinement, SecondPass
from smalti.pipeline import Pipeline
from smalti.registry.folder import ModelFolder
from smalti.registry.spec import ModelSpec

DEFAULT = SecondPass(upscale=2, refine=Refinement())
SEED = 2**63 - 1


@pytest.fixture(scope="module")
def engine(refining: ModelFolder) -> RefinerEngine:
    return RefinerEngine.load(ModelSpec.load(refining))


@pytest.fixture(scope="module")
def nine(refining: ModelFolder) -> list[RefinerInput]:
    """Nine pictures with random tokens and encodings."""
    spec = ModelSpec.load(refining)
    generator = np.random.default_rng(0)
    size = (spec.transformer.max_text_length, spec.transformer.d_model)
    mask = (np.arange(size[0]) < 5).astype(np.int32)
    encoding = Encoding(generator.normal(size=size).astype(np.float32), mask)
    return [
        RefinerInput(
            pixels=generator.integers(0, 256, (spec.resolution, spec.resolution, 3), np.uint8),
            candidate=index,
            tokens=generator.integers(0, spec.codebook_size, spec.tokens).astype(np.int32),
            encoding=encoding,
        )
        for index in range(9)
    ]


@pytest.fixture(scope="module")
def refined(engine: RefinerEngine, nine: list[RefinerInput]) -> np.ndarray:
    return engine.run(nine, DEFAULT, SEED)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_picture_is_the_same_alone_and_among_nine(
    engine: RefinerEngine, nine: list[RefinerInput], batch_size: int
) -> None:
    fixed = RefinerEngine(engine.refiner, engine._codebook, batch_size=batch_size)
    together = fixed.run(nine, DEFAULT, SEED)
    assert together.shape == (9, 64, 64, 3)
    for index in (0, 4, 8):
        np.testing.assert_array_equal(fixed.run([nine[index]], DEFAULT, SEED)[0], together[index])


def test_picture_depends_on_each_of_its_inputs(
    engine: RefinerEngine, nine: list[RefinerInput], refined: np.ndarray
) -> None:
    first, other = nine[:2]
    assert first.encoding is not None
    shorter = Encoding(first.encoding.states, (np.arange(len(first.encoding.mask)) < 4).astype(np.int32))
    for changed in (
        replace(first, tokens=other.tokens),
        replace(first, encoding=shorter),
        replace(first, candidate=1),
        replace(first, pixels=other.pixels),
    ):
        assert (engine.run([changed], DEFAULT, SEED)[0] != refined[0]).any()
    assert (engine.run([first], DEFAULT, SEED - 1)[0] != refined[0]).any()
    for refine in (Refinement(strength=0.5), Refinement(steps=1)):
        assert (engine.run([first], SecondPass(upscale=2, refine=refine), SEED)[0] != refined[0]).any()
    assert first.encoding.states[5:].any()  # What is beyond the mask does not count.
    hidden = replace(
        first.encoding, states=np.where(first.encoding.mask[:, None] > 0, first.encoding.states, 7)
    )
    np.testing.assert_array_equal(engine.run([replace(first, encoding=hidden)], DEFAULT, SEED)[0], refined[0])


@pytest.mark.parametrize("upscale", [1, 2, 4])
def test_strength_zero_is_the_enlarged_input(
    engine: RefinerEngine, nine: list[RefinerInput], upscale: int
) -> None:
    result = engine.run(nine[:2], SecondPass.check(upscale=upscale, refine=Refinement(strength=0)), SEED)
    plain = RefinerEngine().run(nine[:2], SecondPass.check(upscale=upscale), SEED)
    np.testing.assert_array_equal(result, plain)
    image = Image.fromarray(nine[1].pixels)
    wanted = image.resize((32 * upscale, 32 * upscale), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(result[1], np.asarray(wanted if upscale > 1 else image))


def test_network_that_predicts_the_start_returns_it(engine: RefinerEngine, nine: list[RefinerInput]) -> None:
    assert engine.refiner is not None
    silent = {
        **engine.refiner.params,
        "conv_out": {k: v * 0 for k, v in engine.refiner.params["conv_out"].items()},
    }
    network = replace(engine.refiner, params=silent)
    result = RefinerEngine(network, engine._codebook).run(nine[:1], DEFAULT, SEED)
    np.testing.assert_array_equal(result[0], enlarge(nine[0].pixels, 2))


def test_noise_follows_from_seed_and_candidate() -> None:
    noise = noise_of(SEED, 3, (64, 64, 3))
    np.testing.assert_array_equal(noise, noise_of(SEED, 3, (64, 64, 3)))
    assert abs(float(noise.mean())) < 0.05
    assert abs(float(noise.std()) - 1) < 0.05
    for other in (noise_of(SEED, 4, noise.shape), noise_of(SEED - 1, 3, noise.shape)):
        assert abs(float(np.corrcoef(noise.ravel(), other.ravel())[0, 1])) < 0.05


# The pipeline


@pytest.fixture(scope="module")
def pipeline(refining: ModelFolder) -> Iterator[Pipeline]:
    loaded = Pipeline.load(refining.path)
    yield loaded
    loaded.close()


def test_pipeline_refines_the_chosen_pictures(pipeline: Pipeline, refining: ModelFolder) -> None:
    plain = pipeline.generate("a cat", 3, 6, seed=5)
    refined = pipeline.generate("a cat", 3, 6, seed=5, refine=Refinement(steps=2))
    enlarged = pipeline.generate("a cat", 3, 6, seed=5, upscale=4)
    assert [[each.candidate for each in pictures] for pictures in (refined, enlarged)] == [
        [each.candidate for each in plain]
    ] * 2
    assert {each.image.size for each in refined} == {(64, 64)}  # The factor that the refiner was trained for.
    assert {each.image.size for each in enlarged} == {(128, 128)}
    first, same = refined[0].drawing, plain[0].drawing
    assert (first.second_pass, first.refiner) == (
        SecondPass(upscale=2, refine=Refinement(steps=2)),
        refining.refiner_revision,
    )
    assert first.model_copy(update={"second_pass": None, "refiner": None}) == same
    assert enlarged[0].drawing.refiner is None
    # One candidate alone, as `--like` draws it.
    alone = pipeline.generate_candidates(
        "a cat", [first.candidate or 0], seed=5, sampling=pipeline.folder.sampling, total=6
    )
    assert pipeline.refine(alone, first.second_pass or DEFAULT)[0].to_png() == refined[0].to_png()


def test_refining_needs_a_refiner_and_a_known_factor(pipeline: Pipeline) -> None:
    without = RefinerEngine()
    with pytest.raises(NotSupportedError, match="has no refiner"):
        without.run([RefinerInput(pixels=np.zeros((8, 8, 3), np.uint8))], DEFAULT, 0)
    with pytest.raises(InvalidInputError, match="upscale: must be 1, 2 or 4, not 3"):
        pipeline.generate("a cat", 1, 1, upscale=3)
