"""The transformer: agreement with the original's values, and configurations that are refused."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smalti.errors import CheckpointError, ConfigError, ModelError
from smalti.models import bart
from smalti.models.bart import DalleBart, DalleBartConfig
from smalti.models.layers import flatten

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def scan(golden: Path) -> tuple[DalleBart, Any]:
    folder = golden / "dallebart_scan"
    return DalleBart.load(folder), np.load(folder / "expected.npz")


@pytest.mark.parametrize("prefix", ["", "uncond_"])
def test_encoding_and_logits_agree_with_the_original(scan: tuple[DalleBart, Any], prefix: str) -> None:
    model, expected = scan
    mask = expected[f"{prefix}attention_mask"]
    encoding = model.encode(expected[f"{prefix}input_ids"], mask)
    np.testing.assert_allclose(encoding, expected[f"{prefix}encoder_hidden"], atol=TOLERANCE)
    logits = model.logits(encoding, mask, expected["decoder_input_ids"])
    np.testing.assert_allclose(logits, expected[f"{prefix}logits"], atol=TOLERANCE)


def test_decoder_sees_only_the_tokens_before(scan: tuple[DalleBart, Any]) -> None:
    model, expected = scan
    ids = expected["decoder_input_ids"].copy()
    ids[:, 9:] = (ids[:, 9:] + 1) % 64
    logits = model.logits(expected["encoder_hidden"], expected["attention_mask"], ids)
    np.testing.assert_allclose(logits[:, :9], expected["logits"][:, :9], atol=TOLERANCE)
    assert np.abs(logits[:, 9:] - expected["logits"][:, 9:]).max() > 0.01


def test_saved_model_loads_back_the_same(scan: tuple[DalleBart, Any], tmp_path: Path) -> None:
    model, _ = scan
    model.save(tmp_path)
    again = DalleBart.load(tmp_path)
    assert again.config == model.config
    saved, loaded = flatten(model.params), flatten(again.params)
    assert saved.keys() == loaded.keys()
    for name, leaf in saved.items():
        np.testing.assert_array_equal(leaf, loaded[name])


@pytest.mark.parametrize(("part", "absent"), [("encoder", "decoder"), ("decoder", "encoder")])
def test_either_half_can_be_loaded_alone(golden: Path, part: str, absent: str) -> None:
    model = DalleBart.load(golden / "dallebart_scan", part=part)
    assert set(model.params["model"]) == {part}
    assert ("lm_head" in model.params) == (part == "decoder")
    assert not any(f"/{absent}/" in name for name in flatten(model.params))


def test_initialized_model_has_the_published_names_and_counts() -> None:
    mini = DalleBartConfig.from_fields({"encoder_ffn_dim": 2730, "decoder_ffn_dim": 2730})
    mega = DalleBartConfig.from_fields(
        {
            "encoder_vocab_size": 50272, "image_vocab_size": 16415, "decoder_start_token_id": 16384,
            "d_model": 2048, "encoder_layers": 24, "decoder_layers": 24,
            "encoder_attention_heads": 32, "decoder_attention_heads": 32,
        }
    )  # fmt: skip
    shapes = bart.parameter_shapes(mini)
    assert len(shapes) == 42
    assert shapes["model/encoder/layers/FlaxBartEncoderLayers/GLU_0/Dense_2/kernel"] == (12, 2730, 1024)
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 437_833_712
    assert sum(int(np.prod(shape)) for shape in bart.parameter_shapes(mega).values()) == 2_587_521_024


def test_rematerialised_gradient_is_the_same(scan: tuple[DalleBart, Any]) -> None:
    model, expected = scan
    names = ("input_ids", "attention_mask", "decoder_input_ids")
    input_ids, mask, decoder_input_ids = (jnp.asarray(expected[name]) for name in names)

    def loss(params: Any, remat: bool) -> Any:
        states = bart.encode(model.config, params, input_ids, mask, remat=remat)
        return bart.logits(model.config, params, states, mask, decoder_input_ids, remat=remat).var()

    plain, again = (jax.jit(jax.grad(partial(loss, remat=remat)))(model.params) for remat in (False, True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-3), plain, again)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("use_head_scale", True), ("ln_positions", "swinv2"), ("ln_type", "rmsnorm"), ("use_glu", False),
        ("use_bias", True), ("activation_function", "swish"), ("use_swin_position_embeddings", True),
        ("use_alibi", True), ("use_cosine_attention", True), ("sinkhorn_iters", 3), ("use_deepnet_scaling", True),
        ("tie_word_embeddings", True), ("scale_embedding", True), ("force_ln_scale", True),
        ("use_final_ln_encoder", False), ("use_final_ln_decoder", False), ("use_subln_init", True),
        ("use_absolute_position_embeddings", False), ("is_encoder_decoder", False),
    ],
)  # fmt: skip
def test_unsupported_options_are_refused_by_name(
    golden: Path, tmp_path: Path, option: str, value: Any
) -> None:
    shutil.copytree(golden / "dallebart_scan", tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), option: value}))
    with pytest.raises(ConfigError, match=f"^{option}: {json.dumps(value)} is not implemented"):
        DalleBart.load(tmp_path / "model")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"d_model": "large"}, "d_model: .*must be a positive integer"),
        ({"decoder_layers": 0}, "decoder_layers: .*must be a positive integer"),
        (
            {"d_model": 30, "encoder_attention_heads": 4},
            "encoder_attention_heads: 4 must divide d_model, 30",
        ),
        ({"decoder_start_token_id": 99999}, "decoder_start_token_id: 99999 has no embedding"),
    ],
)
def test_impossible_sizes_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DalleBartConfig.from_fields(fields)


def test_weights_of_other_sizes_are_refused_with_the_tensor(golden: Path, tmp_path: Path) -> None:
    shutil.copytree(golden / "dallebart_scan", tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "decoder_ffn_dim": 57}))
    with pytest.raises(CheckpointError, match=r"FlaxBartDecoderLayers/GLU_0/\S+.*56.*57"):
        DalleBart.load(tmp_path / "model")


def test_folder_without_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        DalleBart.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read as JSON"):
        DalleBart.load(tmp_path)
