"""The VQGAN: agreement with the original's values, and configurations that are refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smalti.errors import ConfigError
from smalti.models import vqgan
from smalti.models.layers import apply, flatten
from smalti.models.vqgan import VQGAN, VQGANConfig, VQGANModule
from smalti.registry import library


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


def test_codes_of_a_picture_do_not_depend_on_the_type(tiny_vqgan: tuple[VQGAN, Any]) -> None:
    model, expected = tiny_vqgan
    short = replace(model, dtype=jnp.bfloat16)
    np.testing.assert_array_equal(short.encode(expected["pixels"]), expected["indices"])
    assert not np.array_equal(short.decode(expected["codes"]), model.decode(expected["codes"]))


@pytest.mark.slow
def test_pictures_in_the_short_type_are_almost_the_same() -> None:
    # The shipped VQGAN is trained. In random networks, differences grow from layer to layer.
    model, numbers = VQGAN.load(library.find(None).vqgan_folder), np.random.default_rng(0)
    codes = numbers.integers(0, model.config.n_embed, (2, model.config.tokens))
    exact, rounded = (
        np.asarray(each.decode(codes)).clip(0, 1) for each in (model, replace(model, dtype=jnp.bfloat16))
    )
    assert 0 < np.square(exact - rounded).mean() < 10**-4.5, "less than 45 dB"


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


DECODER: dict[str, Any] = {
    "ch": 32, "ch_mult": [1, 2, 3], "num_res_blocks": 2, "attn_resolutions": [4, 16], "patch_size": 2,
}  # fmt: skip
WIDER: dict[str, Any] = {
    "ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1, "attn_resolutions": [4], "resolution": 32, "z_channels": 8,
    "embed_dim": 8, "n_embed": 16, "patch_size": 2, "reduction": 2,
    "decoder": DECODER,
}  # fmt: skip


def test_a_decoder_has_sizes_of_its_own() -> None:
    config = VQGANConfig.from_fields(WIDER)
    assert (config.tile_size, config.tokens) == (8, 16)
    shapes = vqgan.parameter_shapes(config)
    # The encoder reads 16 pixels in patches of 2, at sides of 8 and 4; the decoder draws 32, at 4, 8 and 16.
    assert shapes["encoder/down_1/attn_0/q/kernel"] == (1, 1, 32, 32)
    assert "encoder/down_0/attn_0/q/kernel" not in shapes
    assert shapes["decoder/up_2/attn_2/q/kernel"] == (1, 1, 96, 96)
    assert "decoder/up_1/attn_0/q/kernel" not in shapes
    assert shapes["decoder/up_0/attn_0/q/kernel"] == (1, 1, 32, 32)
    assert shapes["decoder/conv_out/kernel"] == (3, 3, 32, 12)


def test_a_decoder_draws_larger_pictures_than_its_encoder_reads(tmp_path: Path) -> None:
    config = VQGANConfig.from_fields(WIDER)
    model = VQGAN(config, vqgan.initialize(config, jax.random.key(0)))
    small = np.random.default_rng(0).random((2, 16, 16, 3), np.float32)
    codes = np.asarray(model.encode(small.repeat(2, 1).repeat(2, 2)))
    assert codes.shape == (2, 16)
    assert model.decode(codes).shape == (2, 32, 32, 3)
    # An encoder for the small pictures alone has the same weights, and finds the same codes.
    reads_small = VQGANConfig.from_fields({**WIDER, "resolution": 16, "reduction": 1, "decoder": None})
    np.testing.assert_array_equal(VQGAN(reads_small, model.params).encode(small), codes)
    model.save(tmp_path)
    again = VQGAN.load(tmp_path)
    assert again.config == config
    np.testing.assert_array_equal(again.decode(codes), model.decode(codes))


def test_the_file_of_a_model_without_the_additions_does_not_name_them(
    tiny_vqgan: tuple[VQGAN, Any],
) -> None:
    assert not {"decoder", "reduction"} & tiny_vqgan[0].config.fields().keys()


def test_half_codes_are_as_near_as_the_same_codes_in_float32() -> None:
    module = VQGANModule(jnp.float32, VQGANConfig.from_fields({**WIDER, "n_embed": 2048}))
    half = (4 * jax.random.normal(jax.random.key(0), (2048, 8))).astype(jnp.float16)
    vectors = 4 * jax.random.normal(jax.random.key(1), (4, 32, 32, 8))

    def nearest(codebook: jax.Array) -> jax.Array:
        return apply(
            module, {"quantize": {"embedding": {"embedding": codebook}}}, vectors, method=module.nearest
        )

    np.testing.assert_array_equal(nearest(half), nearest(half.astype(jnp.float32)))


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
        ({"reduction": 2}, "decoder: draws tiles of 16 pixels, but a token of the encoder stands for 32"),
        ({"decoder": 3}, "decoder: 3 must be an object"),
        ({"decoder": {"ch": 32}}, r"decoder\.ch_mult: must be a list"),
        ({"decoder": {**DECODER, "ch": 40}}, r"decoder\.ch: 40 times 1"),
        ({"decoder": {**DECODER, "dropout": 0.1}}, r"decoder\.dropout: is not implemented"),
        ({"decoder": DECODER}, "decoder: draws tiles of 8 pixels"),
    ],
)
def test_impossible_sizes_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VQGANConfig.from_fields(fields)
