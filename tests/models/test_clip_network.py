"""The plain CLIP without open_clip: the same scores and token ids to the last bit, and nothing heavy imported."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from harness.paths import ROOT
from smalti.models.clip import Clip
from smalti.models.clip_files import MERGES_FILE, load_config, write_folder, write_merges
from smalti.models.clip_inputs import ClipTokenizer, picture_reader
from smalti.models.clip_network import PlainClip, is_plain
from smalti.models.open_clip_models import SimpleTokenizer, load_folder, open_clip
from smalti.registry import library

TEXT = {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
TRANSFORMER = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
RESNET = {"image_size": 64, "layers": [1, 2, 1, 1], "width": 16, "head_width": 32, "patch_size": 16}
PROMPTS = ("a red cat on the moon", "", "it's 12 O'Clock &amp; ünïcode 日本語 <end_of_text>", "word " * 50)
MERGES = [("a", "b"), ("ab", "c</w>"), ("c", "a"), ("t", "</w>"), ("c", "at</w>"), ("a", "t</w>")]


def config(vision: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"embed_dim": 16, "vision_cfg": vision, "text_cfg": TEXT, **more}


def pictures() -> list[Image.Image]:
    random = np.random.default_rng(0)
    sizes = ((32, 32), (64, 64), (20, 77), (200, 101), (31, 33))
    noise = [Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]
    return [*noise, noise[2].convert("L"), noise[3].convert("RGBA"), noise[3].convert("P")]


@pytest.mark.parametrize(
    "whole",
    [
        {"model_cfg": config(TRANSFORMER), "preprocess_cfg": {}},
        {"model_cfg": config(TRANSFORMER, quick_gelu=True, init_logit_bias=-10.0)},
        {"model_cfg": config(RESNET), "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25, 0.5, 0.3]}},
    ],
    ids=["transformer", "quick", "resnet"],
)
def test_scores_are_those_of_open_clip(tmp_path: Path, whole: dict[str, Any]) -> None:
    torch.manual_seed(1)
    made = open_clip.CLIP(**whole["model_cfg"])
    for name, tensor in made.state_dict().items():
        if (
            "bn" in name and tensor.is_floating_point()
        ):  # A new residual network has blocks that give nothing.
            tensor.copy_(torch.rand_like(tensor) + 0.5)
    write_folder(tmp_path, made, whole)
    ours = Clip.load(tmp_path, device="cpu")
    assert isinstance(ours.model, PlainClip)
    theirs = Clip(load_folder(tmp_path, load_config(tmp_path)), device="cpu")
    assert isinstance(theirs.model, open_clip.CLIP)
    assert ours.model.state_dict().keys() == theirs.model.state_dict().keys()
    for prompt in PROMPTS:
        one, other = ours.rank(prompt, pictures()), theirs.rank(prompt, pictures())
        assert one.scores.tobytes() == other.scores.tobytes()
        assert one.features.tobytes() == other.features.tobytes()
    assert np.ptp(one.scores) > 1e-4


def test_shipped_ranker_scores_as_open_clip_does() -> None:
    folder = library.find(None).clip_source
    assert isinstance(folder, Path)
    ours, theirs = (
        Clip.load(folder, device="cpu"),
        Clip(load_folder(folder, load_config(folder)), device="cpu"),
    )
    assert isinstance(ours.model, PlainClip)
    for prompt in ("a blue cat on a yellow background", *PROMPTS):
        one, other = ours.rank(prompt, pictures()), theirs.rank(prompt, pictures())
        assert one.scores.tobytes() == other.scores.tobytes()
        assert one.features.tobytes() == other.features.tobytes()


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[ClipTokenizer, SimpleTokenizer]]:
    file = tmp_path_factory.mktemp("merges") / MERGES_FILE
    write_merges(file, MERGES)
    published = Path(open_clip.__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
    return [
        (ClipTokenizer.load(path, 20), SimpleTokenizer(str(path), context_length=20))
        for path in (file, published)
    ]


@settings(deadline=None)
@given(text=st.text(max_size=60) | st.text("abcAT 1'st<>&;\n", max_size=60))
def test_token_ids_are_those_of_open_clip(
    tokenizers: list[tuple[ClipTokenizer, SimpleTokenizer]], text: str
) -> None:
    for ours, theirs in tokenizers:
        assert ours([text, "cat"]).tolist() == theirs([text, "cat"]).tolist()


@pytest.mark.parametrize(
    "change",
    [
        {"vision_cfg": {**TRANSFORMER, "timm_model_name": "vit"}},
        {"vision_cfg": {**TRANSFORMER, "pool_type": "avg"}},
        {"vision_cfg": {**TRANSFORMER, "image_size": [32, 48]}},
        {"vision_cfg": {"width": 32}},
        {"text_cfg": {**TEXT, "hf_tokenizer_name": "somebody/something"}},
        {"text_cfg": {**TEXT, "qk_norm": True}},
        {"custom_text": True},
    ],
    ids=str,
)
def test_other_networks_are_left_to_open_clip(change: dict[str, Any]) -> None:
    assert is_plain(config(TRANSFORMER))
    assert not is_plain({**config(TRANSFORMER), **change})


@pytest.mark.parametrize(
    "change", [{"interpolation": "bilinear"}, {"resize_mode": "squash"}, {"mean": [0.5]}]
)
def test_other_pictures_are_left_to_open_clip(change: dict[str, Any]) -> None:
    assert picture_reader({}, 32) is not None
    assert picture_reader(change, 32) is None


@pytest.mark.process
def test_ranker_of_the_shipped_model_imports_nothing_heavy() -> None:
    program = """
import json, sys
from smalti.engines.ranker import RankerEngine
from smalti.registry import library
RankerEngine.load(library.find(None))
heavy = ("open_clip", "torchvision", "timm", "torch._dynamo", "sympy")
print(json.dumps([name for name in heavy if name in sys.modules]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300, cwd=ROOT
    )
    assert json.loads(done.stdout) == []
