"""A tiny model for tests: the real architecture, a few thousand random weights, a few milliseconds a step.

It draws no recognisable picture; everything around the weights is as in a large model.
"""

from pathlib import Path

import jax

from smalti.models import bart, vqgan
from smalti.models.folder import ModelFolder
from smalti.parameters import Counts, SamplingParameters
from smalti.testing.clip import tiny_clip
from smalti.testing.tokenizer import tiny_tokenizer_files

TINY_VQGAN = vqgan.VQGANConfig(
    ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1, attn_resolutions=(4,), resolution=32,
    z_channels=8, embed_dim=8, n_embed=64,
)  # fmt: skip


def tiny_bart_config(vocabulary: int, **changes: int) -> bart.DalleBartConfig:
    """Returns the sizes of the tiny transformer: 16 image tokens, 64 codes, 2 + 2 layers."""
    sizes = {
        "encoder_vocab_size": vocabulary, "image_vocab_size": TINY_VQGAN.n_embed, "d_model": 32,
        "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_text_length": 64, "image_length": TINY_VQGAN.tokens,
        "decoder_start_token_id": TINY_VQGAN.n_embed,
    }  # fmt: skip
    # A spread this wide makes the random logits differ, so that guidance, top-k and the rest have something to do.
    return bart.DalleBartConfig(**{**sizes, **changes}, normalize_text=True, init_std=0.3)


def tiny_model(folder: Path, seed: int = 0) -> ModelFolder:
    """Writes a tiny model folder; the same seed gives the same bytes.

    Args:
        folder: where; it is made, and must not be there yet.
        seed: of the random weights.
    """
    folder.mkdir(parents=True)
    keys = jax.random.split(jax.random.key(seed))
    vocabulary = tiny_tokenizer_files(folder / "bart")
    config = tiny_bart_config(vocabulary)
    bart.DalleBart(config, bart.initialize(config, keys[0])).save(folder / "bart")
    vqgan.VQGAN(TINY_VQGAN, vqgan.initialize(TINY_VQGAN, keys[1])).save(folder / "vqgan")
    tiny_clip(folder / "clip", seed)
    return ModelFolder.create(
        folder,
        name=folder.name,
        licence="Apache-2.0",
        description="Random weights, for tests.",
        sampling=SamplingParameters(),
        defaults=Counts(),
    )
