"""Export: runs become a working model folder, mismatches are refused, and nothing is half-written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from smalti.errors import CheckpointError, InvalidInputError, ModelError, SmaltiError
from smalti.models import vqgan
from smalti.models.clip import CONFIG_FILE, MERGES_FILE, Clip
from smalti.models.vqgan import VQGAN, VQGANConfig
from smalti.parameters import Defaults, SamplingParameters
from smalti.pipeline import Pipeline
from smalti.registry.folder import ModelFolder
from smalti.registry.spec import ModelSpec
from smalti.registry.verify import find_problems
from smalti.testing.clip import tiny_clip
from smalti.training.export import export
from smalti.training.loop.run_folder import load_run_settings
from smalti.training.trainers.ranker_export import TrainedRanker
from smalti.training.trainers.tokenizer import load_vqgan
from smalti.training.trainers.tokenizer_objective import CODES
from smalti.training.trainers.tokenizer_settings import TokenizerSettings

pytestmark = [
    pytest.mark.usefixtures("orbax_leftovers"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

Export = Callable[..., ModelFolder]


@pytest.fixture
def call(runs: Path, tmp_path: Path) -> Export:
    """Exports the tiny runs to `model`, with changes."""

    def call(**changes: Any) -> ModelFolder:
        arguments: dict[str, Any] = {
            "generator": runs / "generator",
            "ranker": str(runs / "ranker"),
            "out": tmp_path / "model",
            "name": "sample",
            "licence": "CC0-1.0",
        }
        return export(**{**arguments, **changes})

    return call


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def model(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """The exported model; tests must not change it."""
    return export(
        runs / "generator",
        str(runs / "ranker"),
        tmp_path_factory.mktemp("exported") / "model",
        name="sample",
        licence="CC0-1.0",
        tokenizer=runs / "tokenizer",
        description="Draws a little.",
        source="tests",
        defaults=Defaults(n=2, candidates=3),
    )


def test_three_runs_become_a_model_that_draws(model: ModelFolder) -> None:
    assert find_problems(model) == []
    pipeline = Pipeline.load(model.path, slots=2)
    try:
        pictures = pipeline.generate("a red ball", seed=1)
    finally:
        pipeline.close()
    assert [picture.image.size for picture in pictures] == [(64, 64)] * 2
    assert (model.name, model.manifest.licence) == ("sample", "CC0-1.0")
    assert (model.manifest.description, model.manifest.source) == ("Draws a little.", "tests")
    assert model.sampling == SamplingParameters(guidance_scale=1.5, temperature=0.5, top_k=8)
    assert model.defaults == Defaults(n=2, candidates=3)


def test_the_parts_of_the_model_are_those_of_the_runs(
    model: ModelFolder, runs: Path, world_data: Path
) -> None:
    images = np.random.default_rng(0).random((2, 64, 64, 3), np.float32)
    exported, trained = VQGAN.load(model.vqgan_folder), load_vqgan(runs / "tokenizer")
    np.testing.assert_array_equal(exported.encode(images), trained.encode(images))
    clip = Clip.load(model.clip_source, device="cpu")
    best = TrainedRanker.load(runs / "ranker").model.state_dict()
    for name, tensor in clip.model.state_dict().items():
        np.testing.assert_allclose(tensor, best[name], rtol=1e-3, atol=1e-6)
    assert (model.path / "clip" / MERGES_FILE).is_file()
    for file in ("words.json", "credits.md"):
        assert (model.path / file).read_bytes() == (world_data / "world" / file).read_bytes()


def test_exporting_again_gives_the_same_bytes(model: ModelFolder, call: Export) -> None:
    assert call().revision == model.revision


def test_a_folder_of_open_clip_is_copied(call: Export, tmp_path: Path) -> None:
    tiny_clip(tmp_path / "clip")
    made = call(ranker=str(tmp_path / "clip"))
    assert made.clip_source == made.path / "clip"
    assert (made.path / "clip" / CONFIG_FILE).read_bytes() == (tmp_path / "clip" / CONFIG_FILE).read_bytes()


def test_a_name_with_a_tag_is_left_to_open_clip(call: Export) -> None:
    made = call(ranker="ViT-B-32:openai")
    assert made.clip_source == "ViT-B-32:openai"
    assert not (made.path / "clip").exists()


def test_another_decoder_of_the_same_tokens_is_exported(call: Export, runs: Path, tmp_path: Path) -> None:
    own = load_vqgan(runs / "tokenizer")
    # Twice as large, as the encoder sees the mean of two by two pixels.
    sizes = {"ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1, "patch_size": 16}
    config = VQGANConfig.from_fields(
        {**own.config.fields(), "resolution": 128, "reduction": 2, "decoder": sizes}
    )
    untrained = vqgan.initialize(config, jax.random.key(0))
    larger = VQGAN(config, {**untrained, **{name: own.params[name] for name in CODES}})
    larger.save(tmp_path / "larger")
    made = call(tokenizer=tmp_path / "larger")
    assert find_problems(made) == []
    assert ModelSpec.load(made).resolution == 128
    pipeline = Pipeline.load(made.path, slots=2)
    try:
        pictures = pipeline.generate("a red ball", seed=1, n=1, candidates=1)
        shown = pictures[0].image
        assert shown.size == (128, 128)
        tokens = pipeline.decoder.encode(np.asarray(shown)[None])
        assert tokens.shape == (1, 16)
        assert pipeline.decoder.decode(tokens).shape == (1, 128, 128, 3)
        assert pipeline.decoder.decode(tokens[:0]).shape == (0, 128, 128, 3)
    finally:
        pipeline.close()


def test_another_tokenizer_is_refused(call: Export, runs: Path, tmp_path: Path) -> None:
    other = load_vqgan(runs / "tokenizer")
    codebook = other.params["quantize"]["embedding"]["embedding"]
    params = {**other.params, "quantize": {"embedding": {"embedding": codebook + 1}}}
    VQGAN(other.config, params).save(tmp_path / "other")
    with pytest.raises(
        InvalidInputError, match=r"tokenizer: must be the one that .* was trained with, not .*other"
    ):
        call(tokenizer=tmp_path / "other")
    assert leftovers(tmp_path) == ["other"]


@pytest.mark.parametrize(
    ("ranker", "message"),
    [
        ("none", r"ranker: none must be a ranker's run"),
        ("{runs}", r"ranker: .* must be a ranker's run, a folder in open_clip's format"),
        ("{runs}/tokenizer", r"settings\.toml: trains: must be 'ranker' here, not 'tokenizer'"),
    ],
)
def test_a_ranker_in_no_known_form_is_refused(
    call: Export, runs: Path, tmp_path: Path, ranker: str, message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        call(ranker=ranker.format(runs=runs))
    assert leftovers(tmp_path) == []


def test_a_run_of_another_kind_or_without_a_checkpoint_is_refused(
    call: Export, runs: Path, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInputError, match="must be 'generator' here, not 'ranker'"):
        call(generator=runs / "ranker")
    with pytest.raises(InvalidInputError, match=r"run: .* holds no run"):
        call(generator=tmp_path / "none")
    young = Path(shutil.copytree(runs / "ranker", tmp_path / "young"))
    shutil.rmtree(young / "best")
    with pytest.raises(InvalidInputError, match=r"run: .*young has no evaluated checkpoint yet"):
        call(ranker=str(young))
    assert leftovers(tmp_path) == ["young"]


def test_a_generator_of_other_sizes_is_refused(call: Export, runs: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(runs / "generator", tmp_path / "other"))
    text = (other / "settings.toml").read_text()
    (other / "settings.toml").write_text(text.replace("d_model = 16", "d_model = 32"))
    with pytest.raises(CheckpointError, match=r"belongs to another model: .* has the shape"):
        call(generator=other)
    assert leftovers(tmp_path) == ["other"]


def test_an_existing_folder_is_kept_unless_overwriting_is_allowed(call: Export, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").write_text("mine")
    with pytest.raises(InvalidInputError, match=r"out: .*model is not empty; .*--overwrite"):
        call()
    assert leftovers(tmp_path / "model") == ["mine.txt"]
    # A folder that Smalti did not write is never removed.
    with pytest.raises(InvalidInputError, match=r"out: .*model was not written by Smalti"):
        call(overwrite=True)
    assert leftovers(tmp_path / "model") == ["mine.txt"]
    (tmp_path / "model" / "mine.txt").unlink()
    call()
    call(overwrite=True)
    assert "model.json" in leftovers(tmp_path / "model")


def test_an_invalid_manifest_leaves_nothing_behind(call: Export, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="name"):
        call(name="no such name/")
    assert leftovers(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_reported_in_one_line(call: Export, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SmaltiError, match="file") as error:
        call(out=tmp_path / "file" / "model")
    assert "\n" not in str(error.value)
    assert leftovers(tmp_path) == ["file"]


def test_the_runs_can_be_repeated_from_what_they_keep(runs: Path) -> None:
    settings = load_run_settings(runs / "tokenizer", TokenizerSettings)
    assert settings.steps == 3
    records = [json.loads(line) for line in (runs / "ranker" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3, 3]
    assert {"held_out/loss", "held_out/right_picture", "held_out/above_damaged"} <= records[-1].keys()
    assert records[0]["train/pictures_per_second"] > 0
    assert len(list((runs / "ranker" / "sheets").iterdir())) == 1


def test_half_precision_halves_the_files_and_draws(call: Export, model: ModelFolder) -> None:
    half = call(stored="float16")
    for part in ("bart", "vqgan"):
        whole, halved = ((each.path / part / "model.safetensors").stat().st_size for each in (model, half))
        assert halved < 0.6 * whole
    pipeline = Pipeline.load(half.path, slots=2)
    try:
        assert len(pipeline.generate("a red ball", n=1, candidates=1, seed=1)) == 1
    finally:
        pipeline.close()
