"""Settings of a tokenizer's run."""

from typing import Annotated, Literal

from pydantic import Field

from smalti.errors import ConfigError
from smalti.models.vqgan import VQGANConfig
from smalti.training.loop.settings import Count, RunSettings, Share
from smalti.training.losses.adversarial import AdversarialSettings
from smalti.training.losses.perceptual import PerceptualSettings
from smalti.training.losses.reconstruction import COARSEST, LossWeights
from smalti.validation import Strict


class DecoderTable(Strict):
    """Sizes of a decoder that is not the mirror of the encoder, with their names in `config.json`."""

    ch: Count
    ch_mult: tuple[Count, ...]
    num_res_blocks: Count
    attn_resolutions: tuple[Count, ...] = ()
    patch_size: Count = 1


class VQGANSizes(Strict):
    """Sizes of the network, with their names in `config.json`."""

    ch: Count
    ch_mult: tuple[Count, ...]
    num_res_blocks: Count
    attn_resolutions: tuple[Count, ...] = ()
    resolution: Count
    z_channels: Count
    embed_dim: Count
    n_embed: Count
    patch_size: Count = 1
    reduction: Count = 1
    decoder: DecoderTable | None = None


class RestartSettings(Strict):
    """The schedule for moving unused codes to vectors of the encoder."""

    every: Count = 50
    """Interval in steps; at most 20 in the first 200 steps, in which most codes die."""
    until: Share = 0.6
    """Share of the run after which no code is moved any more, so that the decoder can learn all of them."""


class TokenizerSettings(RunSettings):
    """Settings of a tokenizer's run."""

    trains: Literal["tokenizer"] = "tokenizer"
    model: VQGANSizes
    loss: LossWeights = LossWeights()
    restart: RestartSettings = RestartSettings()
    freeze: Literal["nothing", "codes"] = "nothing"
    """With "codes", only the decoder is trained: a picture keeps its tokens."""
    average: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of a moving average of the decoder's weights, which is evaluated and exported; 0 for none."""
    perceptual: PerceptualSettings | None = None
    adversarial: AdversarialSettings | None = None

    def config(self) -> VQGANConfig:
        """Returns the configuration of the model; raises `ConfigError` if the sizes do not fit together."""
        config = VQGANConfig.from_fields(self.model.model_dump())
        if self.loss.coarse and config.resolution % COARSEST:
            raise ConfigError(
                f"loss.coarse: needs a resolution that is a multiple of {COARSEST}, not {config.resolution}"
            )
        for name, part in (("perceptual", self.perceptual), ("adversarial", self.adversarial)):
            if part is not None and part.crop > config.resolution:
                raise ConfigError(
                    f"{name}.crop: must be at most the resolution, {config.resolution}, not {part.crop}"
                )
        return config
