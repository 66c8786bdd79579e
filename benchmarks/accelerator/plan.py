"""The shapes to measure."""

from dataclasses import dataclass

from smalti.models.bart_config import DalleBartConfig
from smalti.models.vqgan_config import VQGANConfig
from smalti.registry.published import MEGA, MINI, VQGAN_F16_16384


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The sizes of the measurements."""

    transformers: dict[str, DalleBartConfig]
    vqgan: VQGANConfig
    pictures: int
    """Pictures that the VQGAN decodes at once."""
    repeats: int
    side: int
    """Rows and columns of the matrices for measuring the device's limits."""
    reading: int
    """Number of bytes to read for measuring the device's limits."""


FULL = Plan(
    transformers={"mini": DalleBartConfig.from_fields(MINI), "mega": DalleBartConfig.from_fields(MEGA)},
    vqgan=VQGANConfig.from_fields(VQGAN_F16_16384),
    pictures=16,
    repeats=5,
    side=8192,
    reading=2**32,
)

_TINY = {
    "encoder_vocab_size": 300, "image_vocab_size": 64, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
    "max_text_length": 8, "image_length": 16, "decoder_start_token_id": 64,
}  # fmt: skip

SMALL = Plan(
    transformers={name: DalleBartConfig.from_fields(_TINY) for name in ("mini", "mega")},
    vqgan=VQGANConfig(
        ch=32,
        ch_mult=(1, 1),
        num_res_blocks=1,
        attn_resolutions=(),
        resolution=8,
        z_channels=8,
        embed_dim=8,
        n_embed=64,
    ),
    pictures=2,
    repeats=2,
    side=256,
    reading=2**22,
)
"""Only to check that everything runs; a few seconds on a CPU."""
