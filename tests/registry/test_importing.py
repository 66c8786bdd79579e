"""Importing models from original files."""

import json
import math
import os
import shutil
import struct
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flax import serialization

from smalti.checkpoints.names import MIN_DALLE_BART, Shape
from smalti.errors import SmaltiError
from smalti.models import bart, vqgan
from smalti.models.bart import DalleBart
from smalti.models.layers import flatten
from smalti.models.vqgan import VQGAN
from smalti.outputs import MARK_FILE
from smalti.parameters import Defaults, SamplingParameters
from smalti.registry.folder import ModelFolder
from smalti.registry.importing import DEFAULT_CLIP, import_model
from smalti.registry.published import MEGA, MINI, VQGAN_F16_16384
from smalti.registry.verify import find_problems
from smalti.text.tokenizer import TextTokenizer

WORDS_FILE = "enwiki-words-frequency.txt"


@pytest.fixture
def originals(tiny: ModelFolder, golden: Path, tmp_path: Path) -> Path:
    """The tiny model in the original format: folders for the transformer, the VQGAN, and CLIP."""
    folder = tmp_path / "originals"
    shutil.copytree(tiny.clip_source, folder / "clip")
    for part, params in (
        ("bart", DalleBart.load(tiny.bart_folder).params),
        ("vqgan", VQGAN.load(tiny.vqgan_folder).params),
    ):
        (folder / part).mkdir()
        (folder / part / "flax_model.msgpack").write_bytes(serialization.to_bytes(params))
        shutil.copy(tiny.path / part / "config.json", folder / part)
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        shutil.copy(tiny.text_folder / name, folder / "bart")
    shutil.copy(golden / "text" / "words-frequency.txt", folder / "bart" / WORDS_FILE)
    (folder / "bart" / "README.md").touch()
    return folder


@pytest.fixture
def make(originals: Path, tmp_path: Path) -> Callable[..., ModelFolder]:
    """A function that imports the originals into `tmp_path / "made"`, with changes to the arguments."""

    def run(**changes: Any) -> ModelFolder:
        arguments: dict[str, Any] = {
            "name": "mosaic",
            "licence": "Apache-2.0",
            "bart": originals / "bart",
            "vqgan": originals / "vqgan",
            "clip": originals / "clip",
            "out": tmp_path / "made",
        }
        arguments |= changes
        return import_model(arguments.pop("name"), **arguments)

    return run


def refusal(action: Callable[[], object], place: Path) -> str:
    """Returns the line with which an import is refused; asserts that it leaves nothing behind."""
    before = sorted(place.rglob("*"))
    with pytest.raises(SmaltiError) as caught:
        action()
    assert sorted(place.rglob("*")) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same_weights(found: ModelFolder, wanted: ModelFolder) -> bool:
    pairs = (
        (DalleBart.load(found.bart_folder).params, DalleBart.load(wanted.bart_folder).params),
        (VQGAN.load(found.vqgan_folder).params, VQGAN.load(wanted.vqgan_folder).params),
    )
    for ours, theirs in pairs:
        left, right = flatten(ours), flatten(theirs)
        if left.keys() != right.keys() or not all(np.array_equal(left[name], right[name]) for name in left):
            return False
    return True


def test_originals_become_a_model(
    make: Callable[..., ModelFolder], tiny: ModelFolder, tmp_path: Path, golden: Path
) -> None:
    sampling, defaults = SamplingParameters(top_k=256), Defaults(n=1, candidates=2)
    made = make(description="Small.", source="the tests", sampling=sampling, defaults=defaults)
    assert made == ModelFolder.open(tmp_path / "made")
    assert find_problems(made) == []
    assert (made.name, made.manifest.description, made.manifest.source) == ("mosaic", "Small.", "the tests")
    assert (made.sampling, made.defaults) == (sampling, defaults)
    assert {path.name for path in made.path.rglob("*") if path.is_file()} - {MARK_FILE} == {
        "model.json",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "vocab.json",
        "merges.txt",
        WORDS_FILE,
        "open_clip_config.json",
        "open_clip_model.safetensors",
    }
    assert same_weights(made, tiny)
    words = (golden / "text" / "words-frequency.txt").read_bytes()
    assert (made.text_folder / WORDS_FILE).read_bytes() == words
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "originals"]


def test_model_is_imported_into_the_folder_of_the_user(
    make: Callable[..., ModelFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMALTI_MODELS", str(tmp_path / "not yet" / "there"))
    assert make(out=None).path == tmp_path / "not yet" / "there" / "mosaic"


def test_same_originals_give_the_same_revision(make: Callable[..., ModelFolder], tmp_path: Path) -> None:
    assert make().revision == make(out=tmp_path / "again", name="again").revision


def test_clip_by_name_is_not_copied(make: Callable[..., ModelFolder]) -> None:
    made = make(clip=DEFAULT_CLIP)
    assert made.clip_source == DEFAULT_CLIP
    assert not (made.path / "clip").exists()


def test_vqgan_file_and_separate_text_folder_are_imported(
    make: Callable[..., ModelFolder], originals: Path, tiny: ModelFolder
) -> None:
    (originals / "text").mkdir()
    for name in ("vocab.json", "merges.txt"):
        (originals / "bart" / name).rename(originals / "text" / name)
    (originals / "bart" / "tokenizer.json").unlink()
    made = make(vqgan=originals / "vqgan" / "flax_model.msgpack", text=originals / "text")
    assert same_weights(made, tiny)
    assert sorted(path.name for path in made.text_folder.iterdir()) == ["merges.txt", "vocab.json"]
    assert find_problems(made) == []


def write_min_dalle(originals: Path, suffix: str) -> None:
    """Turns the transformer into min-dalle's files, of the larger or the smaller model."""
    folder = originals / "bart"
    weights = flatten(DalleBart.load(folder).params)
    (folder / "flax_model.msgpack").unlink()
    for part, prefixes in (("encoder", ("model/encoder/",)), ("decoder", ("model/decoder/", "lm_head/"))):
        state = {}
        for name, spelling in MIN_DALLE_BART.spell(
            {name: leaf.shape for name, leaf in weights.items()}
        ).items():
            if name.startswith(prefixes):
                layers = weights[name] if spelling.stacked else [weights[name]]
                for their_name, layer in zip(spelling.names, layers, strict=True):
                    ours = np.asarray(layer)
                    state[their_name] = torch.tensor(ours if spelling.axes is None else ours.T.copy())
        torch.save(state, folder / f"{part}{suffix}.pt")
    for name in ("vocab.json", "merges.txt"):
        stem, dot, kind = name.partition(".")
        (folder / name).rename(folder / f"{stem}{suffix}{dot}{kind}")
    (folder / "tokenizer.json").unlink()


@pytest.mark.parametrize("suffix", ["", "_mini"])
def test_files_of_min_dalle_are_imported(
    make: Callable[..., ModelFolder], originals: Path, tiny: ModelFolder, suffix: str
) -> None:
    write_min_dalle(originals, suffix)
    if suffix:  # Beside them, as in min-dalle's repository, is the text tokenizer of the larger model.
        (originals / "bart" / "vocab.json").write_text("{}")
    made = make()
    assert same_weights(made, tiny)
    assert find_problems(made) == []
    tokenizer = TextTokenizer.load(made.text_folder, max_text_length=64, normalize=False)
    assert (
        tokenizer.vocabulary_size
        == TextTokenizer.load(tiny.text_folder, max_text_length=64, normalize=False).vocabulary_size
    )


# Imports that are refused before anything is written.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bart": "vqgan"}, "tensor lm_head/kernel of shape (1024, 16385) is missing"),
        ({"vqgan": "bart"}, "tensor decoder/conv_in/bias of shape (512,) is missing"),
        ({"bart": "nowhere"}, "no such folder"),
        ({"vqgan": "vqgan/config.json"}, "not a file of weights of a VQGAN model"),
        ({"clip": "vqgan"}, "it has no open_clip_config.json"),
        ({"text": "vqgan"}, "no text tokenizer"),
    ],
)
def test_invalid_parts_are_refused(
    make: Callable[..., ModelFolder], originals: Path, tmp_path: Path, changes: dict[str, str], message: str
) -> None:
    paths = {part: originals / place for part, place in changes.items()}
    assert message in refusal(lambda: make(**paths), tmp_path)


def test_invalid_names_and_folders_are_refused(make: Callable[..., ModelFolder], tmp_path: Path) -> None:
    assert "name: '../x' is not valid; use up to 100 letters" in refusal(lambda: make(name="../x"), tmp_path)
    assert "licence: must not be empty" in refusal(lambda: make(licence=""), tmp_path)
    assert "clip: 'CLIP' is neither a folder nor NAME:TAG" in refusal(lambda: make(clip="CLIP"), tmp_path)
    (tmp_path / "file").touch()
    assert "made cannot be made, since" in refusal(lambda: make(out=tmp_path / "file" / "made"), tmp_path)
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "mine.txt").touch()
    assert "made is not empty; give another folder" in refusal(make, tmp_path)


def test_damaged_weights_are_refused(
    make: Callable[..., ModelFolder], originals: Path, tmp_path: Path
) -> None:
    path = originals / "vqgan" / "flax_model.msgpack"
    os.truncate(path, path.stat().st_size // 2)
    assert "truncated in tensor" in refusal(make, tmp_path)


def test_parts_of_other_models_are_refused(
    make: Callable[..., ModelFolder], originals: Path, tmp_path: Path
) -> None:
    config = originals / "vqgan" / "config.json"
    fields = json.loads(config.read_text())
    config.write_text(json.dumps(fields | {"resolution": 64, "attn_resolutions": [8]}))
    assert "they are parts of different models" in refusal(make, tmp_path)


def test_weights_without_a_configuration_are_refused(
    make: Callable[..., ModelFolder], originals: Path, tmp_path: Path
) -> None:
    (originals / "vqgan" / "config.json").unlink()
    message = refusal(make, tmp_path)
    assert "there is no config.json beside it, and no published model fits" in message


def test_import_that_fails_late_leaves_nothing(
    make: Callable[..., ModelFolder], originals: Path, tmp_path: Path
) -> None:
    # CLIP is copied last, and a pipe cannot be copied.
    os.mkfifo(originals / "clip" / "pipe")
    assert "is a named pipe" in refusal(make, tmp_path)


def test_published_sizes_have_the_published_numbers_of_weights() -> None:
    def count(shapes: Mapping[str, Shape]) -> int:
        return sum(math.prod(shape) for shape in shapes.values())

    mini, mega = (bart.parameter_shapes(bart.DalleBartConfig.from_fields(fields)) for fields in (MINI, MEGA))
    assert (len(mini), count(mini)) == (42, 437_833_712)
    assert (len(mega), count(mega)) == (42, 2_587_521_024)
    codebook = vqgan.parameter_shapes(vqgan.VQGANConfig.from_fields(VQGAN_F16_16384))
    assert (len(codebook), count(codebook)) == (343, 76_073_859)


def test_weights_without_a_configuration_may_be_those_of_a_published_model(
    make: Callable[..., ModelFolder], originals: Path, tmp_path: Path
) -> None:
    """A sparse file of the published VQGAN's size fits, so that only the transformer does not match."""
    shapes = vqgan.parameter_shapes(vqgan.VQGANConfig.from_fields(VQGAN_F16_16384))
    entries, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * math.prod(shape)
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    header = json.dumps(entries).encode()
    for config in ("none", "of the transformer"):
        folder = tmp_path / config
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
        os.truncate(folder / "model.safetensors", 8 + len(header) + end)
        if config != "none":
            shutil.copy(originals / "bart" / "config.json", folder)
        message = refusal(partial(make, vqgan=folder), tmp_path)
        assert "the transformer generates 16 tokens per picture, but the VQGAN decodes 256" in message
