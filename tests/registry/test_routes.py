"""The keys of a model's stages: models that share files share the workers of these files."""

from pathlib import Path

from smalti.messages import Stage
from smalti.registry import library
from smalti.registry.folder import ModelFolder
from smalti.registry.routes import route_keys
from smalti.testing.model import tiny_model
from smalti.testing.words import SMALL_WORLD


def shared(one: ModelFolder, other: ModelFolder) -> set[str]:
    """Returns the stages that a worker does for both models."""
    keys, others = route_keys(one), route_keys(other)
    assert keys.keys() == others.keys() == set(Stage) - {Stage.EVENTS}
    return {stage.value for stage in keys if keys[stage] == others[stage]}


def test_models_share_the_workers_of_the_parts_that_they_share(tmp_path: Path) -> None:
    one = tiny_model(tmp_path / "one", seed=1, pictures_seed=5)
    assert shared(one, tiny_model(tmp_path / "same" / "one", seed=1, pictures_seed=5)) == set(Stage) - {
        "events"
    }
    assert shared(one, tiny_model(tmp_path / "two", seed=2, pictures_seed=5)) == {"decode", "rank", "refine"}
    assert shared(one, tiny_model(tmp_path / "three", seed=1, pictures_seed=6)) == set()
    refined = tiny_model(tmp_path / "four", seed=1, pictures_seed=5, with_refiner=True)
    assert shared(one, refined) == {"encode", "generate", "decode", "rank"}
    # The records of pictures with `vary` have the words.
    worded = tiny_model(tmp_path / "five", 2, SMALL_WORLD, pictures_seed=5)
    assert shared(one, worded) == {"refine"}


def test_encoder_and_generator_have_the_first_digits_of_the_revision(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "one")
    keys = route_keys(model)
    assert f"sha256:{keys[Stage.ENCODE]}" == model.revision[:19]
    assert keys[Stage.GENERATE] == keys[Stage.ENCODE]


def test_the_shipped_model_has_keys() -> None:
    assert len(set(route_keys(library.find(library.DEFAULT)).values())) == 4
