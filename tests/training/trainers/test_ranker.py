"""Training the ranker: its loss, its words, resuming, and the exported folder."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from rich.console import Console

from harness.paths import SAMPLES
from smalti.errors import CheckpointError, ConfigError, InvalidInputError, ModelError
from smalti.models import vqgan
from smalti.models.clip import CONFIG_FILE, MERGES_FILE, WEIGHTS_FILE, Clip
from smalti.models.open_clip_models import open_clip
from smalti.models.vqgan import VQGAN, VQGANConfig
from smalti.testing.model import TINY_VQGAN_64, random_parameters
from smalti.training.batches.clip_tokenizer import (
    MIN_VOCABULARY_SIZE,
    load_merges,
    make_merges,
    vocabulary_of,
)
from smalti.training.batches.pairs import ComposedPairs, Pairs, PairSource
from smalti.training.data.world.composition import World
from smalti.training.loop.monitor import Monitor
from smalti.training.loop.optimizers import schedule
from smalti.training.loop.run_folder import RunFolder
from smalti.training.loop.settings import load_settings
from smalti.training.loop.train import train
from smalti.training.trainers.ranker import RankerLoss, RankerSettings, RankerTrainee
from smalti.training.trainers.ranker_export import TrainedRanker
from smalti.training.trainers.ranker_inputs import make_trainee, open_vqgan

pytestmark = [
    pytest.mark.usefixtures("orbax_leftovers"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

CONFIG = SAMPLES / "runs" / "ranker.toml"
SIZE = 12
SCHEMA = pa.schema([("image", pa.binary()), ("caption", pa.string())])


@pytest.fixture(scope="module")
def settings() -> RankerSettings:
    return load_settings(CONFIG, RankerSettings)


@pytest.fixture(scope="module")
def world(world_data: Path) -> World:
    return World.load(world_data / "world", 64)


@pytest.fixture(scope="module")
def network() -> VQGAN:
    return VQGAN(TINY_VQGAN_64, random_parameters(vqgan.parameter_shapes(TINY_VQGAN_64), 0))


def changed(settings: RankerSettings, **changes: object) -> RankerSettings:
    return RankerSettings.model_validate({**settings.model_dump(), **changes})


# The loss and the words


def test_pictures_without_a_caption_are_compared_only_by_captions() -> None:
    generator = torch.Generator().manual_seed(0)
    pictures, texts = torch.randn(7, 4, generator=generator), torch.randn(5, 4, generator=generator)
    scale = torch.tensor(1.5)
    plain = open_clip.ClipLoss()(pictures[:5], texts, scale)
    assert float(RankerLoss()(pictures[:5], texts, scale)) == pytest.approx(float(plain))
    logits = scale * texts @ pictures.T
    by_text = -logits.log_softmax(1).diagonal().mean()
    by_picture = -logits[:, :5].log_softmax(0).diagonal().mean()
    assert float(RankerLoss()(pictures, texts, scale)) == pytest.approx(float((by_text + by_picture) / 2))


def test_words_of_the_captions_are_one_token_and_others_are_spelled(tmp_path: Path) -> None:
    captions = ["A red cat's house", "a blue dog on a yellow background", "an owl, in flat style"] * 4
    make_merges(captions, 800, tmp_path / MERGES_FILE)
    tokenizer = load_merges(tmp_path / MERGES_FILE, 16)
    assert MIN_VOCABULARY_SIZE < vocabulary_of(tokenizer) <= 800
    assert [tokenizer.decoder[token] for token in tokenizer.encode("A blue OWL, flat")] == [
        "a</w>", "blue</w>", "owl</w>", ",</w>", "flat</w>",
    ]  # fmt: skip
    assert tokenizer.decode(tokenizer.encode("zebra café 7")) == "zebra café 7 "
    # The end has the highest id, by which open_clip finds it.
    assert tokenizer(["zebra"]).max() == vocabulary_of(tokenizer) - 1
    make_merges(captions, 800, tmp_path / "again.gz")
    assert (tmp_path / "again.gz").read_bytes() == (tmp_path / MERGES_FILE).read_bytes()
    make_merges(captions, MIN_VOCABULARY_SIZE + 10, tmp_path / "few.gz")
    few = load_merges(tmp_path / "few.gz", 16)
    assert vocabulary_of(few) == MIN_VOCABULARY_SIZE + 10
    assert few.decode(few.encode("a yellow dog")) == "a yellow dog "


# Training


def train_in(
    run: Path,
    settings: RankerSettings,
    pairs: PairSource,
    vqgan: VQGAN | None,
    *,
    resume: bool = False,
    minutes: float | None = None,
) -> RankerTrainee:
    folder = RunFolder.resume(run, settings) if resume else RunFolder.create(run, CONFIG)
    try:
        trainee = make_trainee(settings, pairs, vqgan, run)
        console = Console(quiet=True)
        monitor = Monitor(folder, settings, tokens_per_step=trainee.tokens_per_step, console=console)
        train(trainee, settings, folder, monitor, minutes)
        return trainee
    finally:
        folder.close()


@pytest.mark.slow
def test_a_resumed_run_has_the_weights_of_an_uninterrupted_one(
    settings: RankerSettings, world: World, network: VQGAN, tmp_path: Path
) -> None:
    inputs = (settings, ComposedPairs(world, batch_size=SIZE, seed=0, alike=3), network)
    whole = train_in(tmp_path / "whole", *inputs)
    # The time is over at once, so each part takes one step.
    train_in(tmp_path / "parts", *inputs, minutes=0)
    train_in(tmp_path / "parts", *inputs, resume=True, minutes=0)
    resumed = train_in(tmp_path / "parts", *inputs, resume=True)
    assert resumed.state["step"] == settings.steps == 3
    curves = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "parts")]
    assert len(curves[0].splitlines()) == len(curves[1].splitlines()) == 4
    for kind in ("exp_avg", "exp_avg_sq"):
        for name, array in whole.state["optimizer"][kind].items():
            np.testing.assert_allclose(resumed.state["optimizer"][kind][name], array, rtol=1e-5, atol=1e-12)
    for name, array in whole.weights.items():
        np.testing.assert_allclose(resumed.weights[name], array, rtol=1e-5, atol=1e-7)
    assert whole.weights["visual.bn1.num_batches_tracked"] == 3
    chosen = settings.optimizer
    rate = float(schedule(chosen.learning_rate, chosen, settings.steps)(2))
    assert [group["lr"] for group in resumed._optimizer.param_groups] == pytest.approx([rate, rate])


@pytest.fixture(scope="module")
def trained(
    settings: RankerSettings, world: World, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RankerTrainee, Path, Pairs]:
    """A ranker that has memorized three batches, with its run and one of the batches."""
    three = ComposedPairs(world, batch_size=SIZE, seed=0, alike=3)

    class Few(ComposedPairs):
        def batch(self, number: int) -> Pairs:
            return super().batch(number % 3)

        def held_out(self, count: int) -> list[Pairs]:
            return [super(Few, self).batch(number) for number in range(3)]

    longer = changed(
        settings, steps=60, evaluate_every=30, save_every=60, sheet_every=60, redrawn=0.0, damaged=0.0
    )
    run = tmp_path_factory.mktemp("ranker") / "run"
    trainee = train_in(run, longer, Few(world, batch_size=SIZE, seed=0, alike=3), None)
    return trainee, run, three.batch(1)


def test_the_loss_falls(trained: tuple[RankerTrainee, Path, Pairs]) -> None:
    measured = trained[0].evaluate()
    # Twelve pictures by chance: log 12, one in twelve.
    assert measured["loss"] < 0.5 < np.log(SIZE)
    assert measured["right_picture"] > 0.8
    assert trained[0].evaluate() == measured


def test_the_sheet_shows_pictures_beside_the_best_scoring_ones(
    trained: tuple[RankerTrainee, Path, Pairs],
) -> None:
    pixels = np.asarray(trained[0].sheet())
    assert pixels.shape == (SIZE * 66 + 2, 8 * 66 + 2, 3)
    own, best = pixels[2:-2, 2:66], pixels[2:-2, 68:132]
    assert (own == best).mean() > 0.8


@pytest.fixture(scope="module")
def folder(trained: tuple[RankerTrainee, Path, Pairs], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported folder; tests must not change it."""
    out = tmp_path_factory.mktemp("exported") / "clip"
    TrainedRanker.load(trained[1]).write(out)
    return out


def test_the_folder_scores_as_the_trainee_does(
    trained: tuple[RankerTrainee, Path, Pairs], folder: Path
) -> None:
    trainee, _, pairs = trained
    pictures = [Image.fromarray(pixels) for pixels in pairs.pixels]
    clip = Clip.load(folder, device="cpu")
    assert {parameter.dtype for parameter in clip.model.parameters()} == {torch.float32}
    scores = np.stack([clip.scores(caption, pictures) for caption in pairs.captions])
    _, cosines = trainee._score(trainee._prepared(pairs, 0))
    np.testing.assert_allclose(scores, cosines * trainee.model.logit_scale.exp().item(), atol=0.05)
    # The ranker has memorized the batch, so the right picture comes first.
    assert (scores.argmax(1) == np.arange(SIZE)).mean() > 0.8
    assert np.ptp(scores) > 5


def test_the_folder_is_small_and_can_be_moved(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    assert {path.name for path in folder.iterdir()} == {CONFIG_FILE, WEIGHTS_FILE, MERGES_FILE}
    weights = sum(parameter.numel() for parameter in Clip.load(folder).model.parameters())
    assert (folder / WEIGHTS_FILE).stat().st_size < 2.5 * weights
    shutil.copytree(folder, tmp_path / "moved")
    picture = [Image.new("RGB", (64, 64), "red")]
    expected = Clip.load(folder, device="cpu").scores("a red ball", picture)
    monkeypatch.chdir(tmp_path)
    loaded = Clip.load(Path("moved"), device="cpu")
    np.testing.assert_array_equal(loaded.scores("a red ball", picture), expected)
    loaded.save(tmp_path / "saved")
    np.testing.assert_array_equal(
        Clip.load(tmp_path / "saved", "cpu").scores("a red ball", picture), expected
    )
    assert (tmp_path / "saved" / MERGES_FILE).read_bytes() == (folder / MERGES_FILE).read_bytes()


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / MERGES_FILE).unlink(),
        lambda folder: (folder / CONFIG_FILE).write_text(
            (folder / CONFIG_FILE).read_text().replace(MERGES_FILE, f"../other/{MERGES_FILE}")
        ),
    ],
    ids=["missing", "outside"],
)
def test_merges_outside_the_folder_are_refused(
    folder: Path, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    shutil.copytree(folder, tmp_path / "other")
    copied = Path(shutil.copytree(folder, tmp_path / "copied"))
    damage(copied)
    with pytest.raises(ModelError, match=r"bpe_path: .* must be merges\.txt\.gz in the folder"):
        Clip.load(copied)


# Bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accumulate": 2}, "accumulate"),
        ({"optimizer": {"name": "muon"}}, "must be 'adamw' for the ranker"),
        ({"damaged": 0.6}, r"damaged: must be at most redrawn, 0\.5, not 0\.6"),
        ({"vocabulary_size": 100}, "vocabulary_size"),
    ],
)
def test_impossible_settings_are_refused(
    settings: RankerSettings, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        RankerSettings.check(**{**settings.model_dump(), **changes})


def test_sizes_that_open_clip_lacks_are_reported_in_one_line(
    settings: RankerSettings, world: World, tmp_path: Path
) -> None:
    model = settings.model.model_dump()
    model["text_cfg"]["heads"] = 3
    wrong = changed(settings, model=model, redrawn=0, damaged=0)
    with pytest.raises(ConfigError, match=r"model: open_clip has no model of these sizes") as error:
        make_trainee(wrong, ComposedPairs(world, batch_size=SIZE, seed=0, alike=3), None, tmp_path)
    assert "\n" not in str(error.value)


def test_the_tokenizer_must_be_given_if_the_settings_need_it(
    settings: RankerSettings, network: VQGAN, tmp_path: Path
) -> None:
    network.save(tmp_path / "vqgan")
    other = VQGANConfig.from_fields({**network.config.fields(), "resolution": 128})
    VQGAN(other, network.params).save(tmp_path / "larger")
    plain = changed(settings, redrawn=0, damaged=0)
    run = tmp_path / "run"
    with pytest.raises(InvalidInputError, match=r"vqgan: must be given, since redrawn is 0\.5"):
        open_vqgan(settings, None, run)
    with pytest.raises(InvalidInputError, match=r"vqgan: must not be given, since redrawn is 0"):
        open_vqgan(plain, tmp_path / "vqgan", run)
    with pytest.raises(InvalidInputError, match=r"vqgan: .* resolution of image_size, 64, not 128"):
        open_vqgan(settings, tmp_path / "larger", run)
    assert open_vqgan(settings, tmp_path / "vqgan", run) is not None
    decoder = {"ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1, "patch_size": 16}
    sharper = VQGANConfig.from_fields(
        {**network.config.fields(), "resolution": 128, "reduction": 2, "decoder": decoder}
    )
    VQGAN(sharper, random_parameters(vqgan.parameter_shapes(sharper), 0)).save(tmp_path / "sharper")
    assert open_vqgan(settings, tmp_path / "sharper", run) is not None
    assert open_vqgan(plain, None, run) is None


def test_a_checkpoint_of_another_model_is_refused_in_one_line(
    trained: tuple[RankerTrainee, Path, Pairs], settings: RankerSettings, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(trained[1], tmp_path / "run"))
    text = (run / "settings.toml").read_text()
    (run / "settings.toml").write_text(text.replace("embed_dim = 16", "embed_dim = 8"))
    with pytest.raises(CheckpointError, match=r"belongs to another model: .* has the shape") as error:
        TrainedRanker.load(run)
    assert "\n" not in str(error.value)
    (run / "text" / MERGES_FILE).unlink()
    with pytest.raises(InvalidInputError, match="has lost its words"):
        TrainedRanker.load(run)
    with pytest.raises(InvalidInputError, match="holds no run"):
        TrainedRanker.load(tmp_path)
