"""The VQGAN: agreement with the original's values, and configurations that are refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smalti.errors import ConfigError
from smalti.models import vqgan
from smalti.models.layers import flatten
from smalti.models.vqgan import VQGAN, VQGANConfig


@pytest.fixture(scope="module")
def tiny_vqgan(golden: Path) -> tuple[VQGAN, Any]:
    folder = golden / "vqgan_tiny"
    return VQGAN.load(folder), np.load(folder / "expected.npz")


def test_codes_equal_those_of_the_original(tiny_vqgan: tuple[VQGAN, Any]) -> None:
    model, expected = tiny_vqgan
    np.testing.assert_array_equal(model.encode(expected["pixels"]), expected["indices"])


def test_decoded_pictures_agree_with_the_original(tiny_vqgan: tuple[VQGAN, Any]) -> None:
    model, expected = tiny_vqgan
    np.testing.assert_allclose(model.decode(expected["codes"]), expected["decoded"], atol=1e-4)


def test_saved_model_loads_back_the_same(tiny_vqgan: tuple[VQGAN, Any], tmp_path: Path) -> None:
    model, _ = tiny_vqgan
    model.save(tmp_path)
    again = VQGAN.load(tmp_path)
    assert again.config == model.config
    loaded = flatten(again.params)
    for name, leaf in flatten(model.params).items():
        np.testing.assert_array_equal(leaf, loaded[name])


def test_published_sizes_have_the_published_parameters() -> None:
    shapes = vqgan.parameter_shapes(VQGANConfig.from_fields({"n_embed": 16384}))
    assert len(shapes) == 343
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 76_073_859
    assert shapes["encoder/down_4/attn_1/proj_out/kernel"] == (1, 1, 512, 512)
    assert shapes["decoder/up_1/upsample/conv/kernel"] == (3, 3, 128, 128)
    assert shapes["quantize/embedding/embedding"] == (16384, 256)


def test_tokens_that_do_not_make_a_square_are_refused(tiny_vqgan: tuple[VQGAN, Any]) -> None:
    with pytest.raises(ValueError, match="255 tokens"):
        tiny_vqgan[0].decode(np.zeros((1, 255), np.int32))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("double_z", True),
        ("give_pre_end", True),
        ("resamp_with_conv", False),
        ("in_channels", 4),
        ("out_ch", 1),
    ],
)
def test_unsupported_options_are_refused_by_name(
    golden: Path, tmp_path: Path, option: str, value: Any
) -> None:
    shutil.copytree(golden / "vqgan_tiny", tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), option: value}))
    with pytest.raises(ConfigError, match=f"^{option}: {json.dumps(value)} is not implemented"):
        VQGAN.load(tmp_path / "model")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ch": 48}, "ch: 48 times 1 of ch_mult must be a multiple of 32"),
        ({"ch_mult": []}, "ch_mult: must not be empty"),
        ({"attn_resolutions": 16}, "attn_resolutions: 16 must be a list"),
        ({"resolution": 100}, "resolution: 100 must be a multiple of 16"),
    ],
)
def test_impossible_sizes_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VQGANConfig.from_fields(fields)
