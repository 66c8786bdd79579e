"""Configurations of the published models, for weights without a `config.json` (min-dalle, taming-transformers).

Copied from `config.json` of dalle-mini/dalle-mini, dalle-mini/dalle-mega and dalle-mini/vqgan_imagenet_f16_16384 on
the Hugging Face hub; fields that equal the library's defaults are left out.
"""

from typing import Any

MINI: dict[str, Any] = {
    "normalize_text": True,
    "encoder_vocab_size": 50264,
    "image_vocab_size": 16384,
    "d_model": 1024,
    "encoder_layers": 12,
    "decoder_layers": 12,
    "encoder_ffn_dim": 2730,
    "decoder_ffn_dim": 2730,
    "encoder_attention_heads": 16,
    "decoder_attention_heads": 16,
    "decoder_start_token_id": 16384,
}

MEGA: dict[str, Any] = {
    "normalize_text": True,
    "encoder_vocab_size": 50272,
    "image_vocab_size": 16415,
    "d_model": 2048,
    "encoder_layers": 24,
    "decoder_layers": 24,
    "encoder_ffn_dim": 4096,
    "decoder_ffn_dim": 4096,
    "encoder_attention_heads": 32,
    "decoder_attention_heads": 32,
    "decoder_start_token_id": 16384,
    "init_std": 0.01,
}

VQGAN_F16_16384: dict[str, Any] = {
    "ch": 128,
    "ch_mult": [1, 1, 2, 2, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [16],
    "resolution": 256,
    "z_channels": 256,
    "embed_dim": 256,
    "n_embed": 16384,
}
