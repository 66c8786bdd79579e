"""Configuration of DALL·E mini's transformer; separate from the network because it needs no JAX."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smalti.errors import ConfigError
from smalti.models.configuration import check_options, positive_integer, read_config

# Every option of the original configuration that changes the graph, with the value of the published models.
PUBLISHED: dict[str, Any] = {
    "activation_function": "gelu",
    "force_ln_scale": False,
    "is_encoder_decoder": True,
    "ln_positions": "normformer",
    "ln_type": "layernorm",
    "scale_embedding": False,
    "sinkhorn_iters": 1,
    "tie_word_embeddings": False,
    "use_absolute_position_embeddings": True,
    "use_alibi": False,
    "use_bias": False,
    "use_cosine_attention": False,
    "use_deepnet_scaling": False,
    "use_final_ln_decoder": True,
    "use_final_ln_encoder": True,
    "use_glu": True,
    "use_head_scale": False,
    "use_subln_init": False,
    "use_swin_position_embeddings": False,
}


@dataclass(frozen=True)
class DalleBartConfig:
    """Sizes of the transformer, named as in `config.json`."""

    encoder_vocab_size: int
    image_vocab_size: int
    d_model: int
    encoder_layers: int
    decoder_layers: int
    encoder_attention_heads: int
    decoder_attention_heads: int
    encoder_ffn_dim: int
    decoder_ffn_dim: int
    max_text_length: int = 64
    image_length: int = 256
    decoder_start_token_id: int = 0
    """The token before the first image token; all ids below it are image tokens."""
    normalize_text: bool = False
    init_std: float = 0.02

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> "DalleBartConfig":
        """Makes the configuration from the fields of `config.json`, the original's or ours.

        Missing fields take the defaults of the original library.

        Raises:
            ConfigError: an option is not supported, or a size is invalid.
        """
        check_options("DalleBart", fields, PUBLISHED)
        image_vocab_size = positive_integer(fields, "image_vocab_size", 16384)
        config = cls(
            encoder_vocab_size=positive_integer(fields, "encoder_vocab_size", 50264),
            image_vocab_size=image_vocab_size,
            d_model=positive_integer(fields, "d_model", 1024),
            encoder_layers=positive_integer(fields, "encoder_layers", 12),
            decoder_layers=positive_integer(fields, "decoder_layers", 12),
            encoder_attention_heads=positive_integer(fields, "encoder_attention_heads", 16),
            decoder_attention_heads=positive_integer(fields, "decoder_attention_heads", 16),
            encoder_ffn_dim=positive_integer(fields, "encoder_ffn_dim", 4096),
            decoder_ffn_dim=positive_integer(fields, "decoder_ffn_dim", 4096),
            max_text_length=positive_integer(fields, "max_text_length", 64),
            image_length=positive_integer(fields, "image_length", 256),
            decoder_start_token_id=positive_integer(fields, "decoder_start_token_id", image_vocab_size),
            normalize_text=bool(fields.get("normalize_text", False)),
            init_std=float(fields.get("init_std", 0.02)),
        )
        for stack in ("encoder", "decoder"):
            heads = getattr(config, f"{stack}_attention_heads")
            if config.d_model % heads:
                raise ConfigError(f"{stack}_attention_heads: {heads} must divide d_model, {config.d_model}")
        if config.decoder_start_token_id > image_vocab_size:
            raise ConfigError(
                f"decoder_start_token_id: {config.decoder_start_token_id} has no embedding; "
                f"must be at most image_vocab_size, {image_vocab_size}"
            )
        return config

    @classmethod
    def load(cls, folder: Path) -> "DalleBartConfig":
        """Reads the `config.json` of a folder; raises `ModelError` or `ConfigError`."""
        return cls.from_fields(read_config(folder))

    def fields(self) -> dict[str, Any]:
        """Returns the fields of `config.json`, including the fixed options of the published graph."""
        return {"model_type": "dallebart", **PUBLISHED, "use_scan": True, **vars(self)}
