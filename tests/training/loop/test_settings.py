"""Settings files: errors name the key, all keys are documented, and the shipped runs are valid."""

import json
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from harness.paths import ROOT, RUNS
from smalti.errors import ConfigError, InvalidInputError
from smalti.models.vqgan import VQGANConfig
from smalti.training.loop.optimizers import schedule
from smalti.training.loop.settings import OptimizerSettings, RunSettings, load_settings
from smalti.training.trainers.generator import GeneratorSettings
from smalti.training.trainers.judge import JudgeSettings
from smalti.training.trainers.ranker import RankerSettings, untrained
from smalti.training.trainers.refiner import RefinerSettings
from smalti.training.trainers.tokenizer_settings import TokenizerSettings

DOCUMENT = ROOT / "docs" / "training.md"
NETWORKS: dict[str, type[RunSettings]] = {
    "tokenizer": TokenizerSettings,
    "generator": GeneratorSettings,
    "ranker": RankerSettings,
    "refiner": RefinerSettings,
}
TOKENIZER = """
trains = "tokenizer"
steps = 10
batch_size = 4
[model]
ch = 32
ch_mult = [1]
num_res_blocks = 1
resolution = 16
z_channels = 4
embed_dim = 4
n_embed = 16
"""


def write(path: Path, text: str) -> Path:
    (path / "run.toml").write_text(text)
    return path / "run.toml"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("steps = 10", "stepps = 10"), r"run\.toml: .*step"),
        (("steps = 10", "steps = 10\npace = 3"), r"run\.toml: pace: there is no such key"),
        (("ch = 32", "ch = 32\nwidth = 3"), r"run\.toml: model\.width: there is no such key"),
        (("steps = 10", "steps = 0"), r"run\.toml: steps: .*greater than or equal to 1"),
        (
            ("batch_size = 4", "batch_size = 4\naccumulate = 3"),
            r"accumulate: must divide batch_size, 4, not 3",
        ),
        (("steps = 10", "steps = "), r"run\.toml: cannot be read as TOML"),
        (
            ('trains = "tokenizer"', 'trains = "generator"'),
            r"run\.toml: trains: must be 'tokenizer' here",
        ),
    ],
)
def test_a_wrong_key_or_value_is_named(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message) as error:
        load_settings(write(tmp_path, TOKENIZER.replace(*change)), TokenizerSettings)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"none\.toml: cannot be read"):
        load_settings(tmp_path / "none.toml", TokenizerSettings)


def test_an_impossible_size_is_named(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, TOKENIZER.replace("ch = 32", "ch = 33")), TokenizerSettings)
    with pytest.raises(ConfigError, match=r"^ch: 33"):
        settings.config()


@pytest.mark.parametrize("file", sorted(RUNS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_run_is_of_a_possible_model(file: Path) -> None:
    network = tomllib.loads(file.read_text("utf-8"))["trains"]
    settings = load_settings(file, NETWORKS.get(network, JudgeSettings))
    if isinstance(settings, TokenizerSettings):
        settings.config()
    elif isinstance(settings, RankerSettings):
        untrained(settings.config(settings.vocabulary_size), 0)
    elif isinstance(settings, RefinerSettings):
        settings.config(code_dim=16, text_dim=160)
    elif isinstance(settings, GeneratorSettings):
        settings.config(512, VQGANConfig())
    else:
        assert network == "judge"


def keys(settings: type[BaseModel], above: str = "") -> Iterator[tuple[str, object]]:
    """Yields the keys of a settings file with their defaults."""
    for name, field in settings.model_fields.items():
        # A table that may be left out is a union with None.
        tables = [
            kind
            for kind in (field.annotation, *get_args(field.annotation))
            if isinstance(kind, type) and issubclass(kind, BaseModel)
        ]
        if tables:
            yield from keys(tables[0], f"{above}{name}.")
        else:
            yield above + name, field.default


def test_every_key_is_documented_with_its_default_and_no_other_is() -> None:
    rows = re.findall(r"^\| (`[a-z0-9_.`, ]+`) \|(.*?)\|", DOCUMENT.read_text(), re.MULTILINE)
    # Tables of different networks may have the same key, with different defaults.
    told: dict[str, set[str]] = defaultdict(set)
    for names, default in rows:
        for key in re.findall(r"`([a-z0-9_.]+)`", names):
            told[key].add(default.replace(",", "").strip(" `"))
    known = [(key, default) for kind in NETWORKS.values() for key, default in keys(kind)]
    files = {"settings.toml", "metrics.jsonl"}
    assert told.keys() - files == {key for key, _ in known}
    for key, default in known:
        if key.startswith("sampling.") or key == "trains":
            continue
        written = "" if default is PydanticUndefined else json.dumps(default)
        assert written.replace(",", "") in told[key], key


def test_the_learning_rate_warms_up_and_ends_at_its_share() -> None:
    rate = schedule(0.1, OptimizerSettings(warmup_steps=10, final_share=0.05), 100)
    assert float(rate(10)) == pytest.approx(0.1)
    assert 0 < float(rate(0)) < float(rate(5)) < float(rate(10))
    assert float(rate(55)) == pytest.approx((0.1 + 0.005) / 2)
    assert float(rate(100)) == pytest.approx(0.005)
