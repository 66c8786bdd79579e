"""What the tests of the evaluation share: a tiny model for pictures of the world, with its judge and its data."""

from dataclasses import replace
from pathlib import Path

import pytest

from harness.paths import SAMPLES
from smalti.models import bart, vqgan
from smalti.parameters import Defaults
from smalti.registry.folder import ModelFolder
from smalti.testing.clip import tiny_clip
from smalti.testing.model import TINY_VQGAN, random_parameters, tiny_bart_config
from smalti.testing.tokenizer import tiny_tokenizer_files
from smalti.training.data.world.composition import World
from smalti.training.data.world.sprites import make_sprites
from smalti.training.judge.network import heads_of
from smalti.training.loop.run_folder import RunFolder
from smalti.training.trainers.judge import JudgeObjective, JudgeSettings

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


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, world: World) -> Path:
    """A data folder, a judge's run, prompts, and a tiny model for pictures of 64 pixels."""
    folder = tmp_path_factory.mktemp("evaluation")
    (folder / "data").mkdir()
    (folder / "data" / "world.json").write_bytes((SAMPLES / "world.json").read_bytes())
    make_sprites(SAMPLES / "packages", world.description, 64).save(folder / "data" / "sprites.npz")
    (folder / "sheets.toml").write_text(SHEETS)
    (folder / "judge.toml").write_text(JUDGE)
    run = RunFolder.create(folder / "judge", folder / "judge.toml")
    objective = JudgeObjective(
        JudgeSettings.check(steps=2, batch_size=4, model={"width": 16}).model, heads_of(world.description)
    )
    run.save_best(1, objective.initialize()[0], 1.0)
    run.append({"step": 1, "train/loss": 3.0, "train/pictures_per_second": 8.0})
    run.append({"step": 2, "train/loss": 2.0, "train/pictures_per_second": 4.0})
    run.close()
    (folder / "judge" / "world.json").write_bytes((SAMPLES / "world.json").read_bytes())

    model = folder / "model"
    tokenizer = replace(TINY_VQGAN, resolution=64)
    config = tiny_bart_config(tiny_tokenizer_files(model / "bart"), image_length=tokenizer.tokens)
    bart.DalleBart(config, random_parameters(bart.parameter_shapes(config), 0)).save(model / "bart")
    vqgan.VQGAN(tokenizer, random_parameters(vqgan.parameter_shapes(tokenizer), 0)).save(model / "vqgan")
    tiny_clip(model / "clip", 0)
    (model / "credits.md").write_text("## Pictures and words\n\nDrawn by Somebody.\n")
    ModelFolder.create(model, name="model", licence="Apache-2.0", defaults=Defaults(n=3, candidates=4))
    return folder
