"""A tiny model: the real architecture with a few thousand random weights, a few milliseconds per step.

Its pictures are noise; everything except the weights is as in a large model.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from smalti.models import bart, refiner, vqgan
from smalti.models.layers import Parameters, unflatten
from smalti.parameters import Defaults, SamplingParameters
from smalti.registry.folder import ModelFolder
from smalti.testing.tokenizer import tiny_tokenizer_files
from smalti.text.vocabulary import KNOWN_WORDS_FILE, Words

TINY_VQGAN = vqgan.VQGANConfig(
    ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1, attn_resolutions=(4,), resolution=32,
    z_channels=8, embed_dim=8, n_embed=64,
)  # fmt: skip

TINY_VQGAN_64 = vqgan.VQGANConfig(
    ch=32, ch_mult=(1,), num_res_blocks=1, attn_resolutions=(), resolution=64, z_channels=4, embed_dim=4,
    n_embed=32, patch_size=16,
)  # fmt: skip
"""For 64-pixel pictures: 16 tokens, 32 codes."""


TINY_REFINER = refiner.RefinerConfig(
    code_dim=TINY_VQGAN.embed_dim, text_dim=32, channels=(16, 32), num_res_blocks=1, attention_heads=2, patch_size=4,
    upscale=2,
)  # fmt: skip
"""Enlarges the pictures of the tiny model to 64 pixels."""


def tiny_bart_config(vocabulary: int, **changes: int) -> bart.DalleBartConfig:
    """Returns the configuration of the tiny transformer: 16 image tokens, 64 codes, 2 + 2 layers."""
    sizes = {
        "encoder_vocab_size": vocabulary, "image_vocab_size": TINY_VQGAN.n_embed, "d_model": 32,
        "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_text_length": 64, "image_length": TINY_VQGAN.tokens,
        "decoder_start_token_id": TINY_VQGAN.n_embed,
    }  # fmt: skip
    return bart.DalleBartConfig(**{**sizes, **changes}, normalize_text=True)


def random_parameters(shapes: Mapping[str, tuple[int, ...]], seed: int) -> Parameters:
    """Returns random parameters for the given names and shapes; the seed determines them.

    NumPy generates them: compiling a program for the device would take far longer.
    """
    generator = np.random.default_rng(seed)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        kind = name.rpartition("/")[2]
        if kind == "scale":
            return np.ones(shape, np.float32)
        # Wide enough for different logits, so that guidance, top-k and the like have an effect.
        return generator.normal(0, 0.1 if kind == "bias" else 0.3, shape).astype(np.float32)

    return unflatten({name: draw(name, shape) for name, shape in shapes.items()})


def tiny_model(
    folder: Path,
    seed: int = 0,
    words: Words | None = None,
    *,
    with_refiner: bool = False,
    pictures_seed: int | None = None,
) -> ModelFolder:
    """Writes the folder of a tiny model; a seed determines all bytes.

    Args:
        folder: the folder to create; must not exist.
        seed: the seed of the random weights.
        words: the words that the model knows; None for a model that accepts any text.
        with_refiner: whether the model has a refiner.
        pictures_seed: the seed of VQGAN and CLIP, for models that share them; None for `seed`.
    """
    pictures_seed = seed if pictures_seed is None else pictures_seed
    folder.mkdir(parents=True)
    config = tiny_bart_config(tiny_tokenizer_files(folder / "bart"))
    bart.DalleBart(config, random_parameters(bart.parameter_shapes(config), seed)).save(folder / "bart")
    shapes = vqgan.parameter_shapes(TINY_VQGAN)
    vqgan.VQGAN(TINY_VQGAN, random_parameters(shapes, pictures_seed)).save(folder / "vqgan")
    # Only here, so that what computes with JAX can be tested where torch is not installed.
    from smalti.testing.clip import tiny_clip

    tiny_clip(folder / "clip", pictures_seed)
    if with_refiner:
        shapes = refiner.parameter_shapes(TINY_REFINER)
        refiner.Refiner(TINY_REFINER, random_parameters(shapes, seed)).save(folder / "refiner")
    if words:
        (folder / KNOWN_WORDS_FILE).write_text(words.model_dump_json(indent=1), "utf-8")
    return ModelFolder.create(
        folder,
        name=folder.name,
        licence="Apache-2.0",
        description="Random weights, for tests.",
        sampling=SamplingParameters(),
        defaults=Defaults(),
    )
