"""Training the image tokenizer: a VQGAN that learns to reconstruct pictures from their tokens."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8
from PIL import Image

from smalti.errors import ConfigError, InvalidInputError
from smalti.models import vqgan
from smalti.models.layers import Parameters, apply, compute_dtype
from smalti.models.vqgan import VQGAN, VQGANConfig, VQGANModule
from smalti.training.batches.batch import Batch
from smalti.training.batches.sources import PictureSource, open_pictures
from smalti.training.loop.run_folder import SETTINGS_FILE, load_best, load_run_settings
from smalti.training.loop.settings import Count, RunSettings, Share
from smalti.training.loop.sheets import compare
from smalti.training.loop.step import Extra, Metrics, Objective
from smalti.training.loop.trainee import JaxTrainee
from smalti.training.losses.reconstruction import COARSEST, LossWeights, reconstruction_loss
from smalti.training.similarity import psnr, sharpness, ssim
from smalti.training.trainers.inputs import Advance, Inputs
from smalti.training.trainers.quantizer import on_sphere, quantize, restart_dead
from smalti.validation import Strict

_SHEET_PICTURES = 48
_EARLY_STEPS = 200
"""Most codes die in these steps."""
_EARLY_RESTARTS = 20
"""Interval between restarts in the early steps."""


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

    def config(self) -> VQGANConfig:
        """Returns the configuration of the model; raises `ConfigError` if the sizes do not fit together."""
        config = VQGANConfig.from_fields(self.model.model_dump())
        if self.loss.coarse and config.resolution % COARSEST:
            raise ConfigError(
                f"loss.coarse: needs a resolution that is a multiple of {COARSEST}, not {config.resolution}"
            )
        return config


class TokenizerObjective(Objective):
    """The network and its loss."""

    def __init__(self, settings: TokenizerSettings) -> None:
        self.config = settings.config()
        self._settings = settings
        self._module = VQGANModule(compute_dtype(), self.config)

    def initialize(self) -> tuple[Parameters, Any]:
        """Returns untrained weights with a codebook on the sphere, and a count of 0 for every code."""
        weights_key, codes_key = jax.random.split(jax.random.key(self._settings.seed))
        codebook = on_sphere(jax.random.normal(codes_key, (self.config.n_embed, self.config.embed_dim)))
        params = _with_codebook(vqgan.initialize(self.config, weights_key), codebook)
        return params, {"used": jnp.zeros(self.config.n_embed, jnp.int32)}

    def loss(
        self, params: Parameters, batch: Mapping[str, Array]
    ) -> tuple[Float[Array, ""], tuple[Metrics, Extra]]:
        """Compares pictures with their reconstructions."""
        weights = self._settings.loss
        pixels = batch["pixels"].astype(jnp.float32) / 255
        vectors = on_sphere(apply(self._module, params, pixels, method=VQGANModule.vectors))
        nearest, codes, codebook_loss = quantize(vectors, _codebook(params), weights.commitment)
        reconstructed = apply(self._module, params, nearest, method=VQGANModule.pixels)
        loss, terms = reconstruction_loss(weights, reconstructed, pixels)
        metrics = {**terms, "codebook": codebook_loss}
        return loss + weights.codebook * codebook_loss, (metrics, {"vectors": vectors, "codes": codes})

    def after_update(
        self, step: Int[Array, ""], params: Parameters, memory: Any, extra: Extra
    ) -> tuple[Parameters, Any]:
        """Projects the codes back onto the sphere, and restarts unused ones when it is time."""
        settings = self._settings
        codebook = on_sphere(_codebook(params))
        used = memory["used"].at[extra["codes"].reshape(-1)].add(1)
        early = jnp.minimum(_EARLY_RESTARTS, settings.restart.every)
        every = jnp.where(step <= _EARLY_STEPS, early, settings.restart.every)
        due = (step % every == 0) & (step <= settings.restart.until * settings.steps)
        vectors = jax.lax.stop_gradient(extra["vectors"]).reshape(-1, self.config.embed_dim)
        key = jax.random.fold_in(jax.random.key(settings.seed), step)
        codebook = jnp.where(due, restart_dead(codebook, used, vectors, key), codebook)
        return _with_codebook(params, codebook), {"used": jnp.where(due, 0, used)}


class TokenizerTrainee(JaxTrainee):
    """A tokenizer in training."""

    def __init__(self, settings: TokenizerSettings, pictures: PictureSource) -> None:
        """Makes the untrained model and the held-out pictures.

        Args:
            settings: of the run.
            pictures: pictures with the model's resolution.
        """
        objective = TokenizerObjective(settings)
        super().__init__(
            objective,
            settings,
            partial(_make_batch, pictures, settings.batch_size),
            tokens_per_step=settings.batch_size * objective.config.tokens,
        )
        self._config = objective.config
        self._held_out = pictures.held_out(settings.held_out)
        self._size = settings.batch_size

    def evaluate(self) -> dict[str, float]:
        """Compares held-out pictures with their reconstructions, and measures how the codes are used.

        Returns:
            "loss", the absolute error of pixels; PSNR and SSIM; "sharpness" as a share of that of the pictures;
            "codes_used", the share of codes in use; "perplexity", the number of equally frequent codes with the same
            entropy.
        """
        pictures = self._held_out.astype(np.float32) / 255
        reconstructed, codes = self._reconstruct(self._held_out)
        shares = np.bincount(codes.ravel(), minlength=self._config.n_embed) / codes.size
        used = shares[shares > 0]
        return {
            "loss": float(np.abs(2 * (reconstructed - pictures)).mean()),
            "psnr": float(psnr(reconstructed, pictures).mean()),
            "ssim": float(ssim(reconstructed, pictures).mean()),
            "sharpness": float(sharpness(_bytes(reconstructed)).mean() / sharpness(self._held_out).mean()),
            "codes_used": len(used) / self._config.n_embed,
            "perplexity": float(np.exp(-(used * np.log(used)).sum())),
        }

    def sheet(self) -> Image.Image:
        """Shows held-out pictures, each row above the row of its reconstructions."""
        pictures = self._held_out[:_SHEET_PICTURES]
        reconstructed, _ = self._reconstruct(pictures)
        return compare(pictures, _bytes(reconstructed))

    def _reconstruct(
        self, pictures: UInt8[np.ndarray, "pictures height width 3"]
    ) -> tuple[Float[np.ndarray, "pictures height width 3"], Int[np.ndarray, "pictures tokens"]]:
        """Returns reconstructions with pixels in [0, 1], and the tokens, as the exported model computes them."""
        model = VQGAN(self._config, self.weights)
        reconstructed, codes = [], []
        for start in range(0, len(pictures), self._size):
            part = pictures[start : start + self._size]
            codes.append(np.asarray(model.encode(part.astype(np.float32) / 255)))
            reconstructed.append(np.asarray(model.decode(codes[-1])))
        return np.concatenate(reconstructed).clip(0, 1), np.concatenate(codes)


def prepare(settings: TokenizerSettings, inputs: Inputs, run: Path, advance: Advance) -> TokenizerTrainee:
    """Makes the trainee of a run.

    Args:
        settings: of the run.
        inputs: a world or Parquet shards with the column `image`; no image tokenizer.
        run: folder of the run; a tokenizer keeps nothing there.
        advance: not called, since no pictures are encoded.

    Raises:
        ConfigError: the sizes do not fit together.
        InvalidInputError: the data folder cannot be used.
    """
    pictures = open_pictures(inputs.data, settings.config().resolution, settings.seed)
    return TokenizerTrainee(settings, pictures)


def require_vqgan(inputs: Inputs) -> VQGAN:
    """Loads the image tokenizer of a trainer's inputs.

    Raises:
        InvalidInputError: none was given, the run is not a tokenizer's, or it has not been evaluated yet.
        ModelError: the folder holds no VQGAN.
    """
    if inputs.vqgan is None:
        raise InvalidInputError("vqgan", "must be given: a tokenizer's run, or a folder with a VQGAN")
    return load_vqgan(inputs.vqgan)


def load_vqgan(path: Path) -> VQGAN:
    """Loads the best weights of a tokenizer's run, or a folder with a VQGAN in any format.

    Raises:
        InvalidInputError: the run is not a tokenizer's, or has not been evaluated yet.
        ModelError: the folder holds no VQGAN.
    """
    if not (path / SETTINGS_FILE).is_file():
        return VQGAN.load(path)
    config = load_run_settings(path, TokenizerSettings).config()
    untrained = jax.eval_shape(partial(vqgan.initialize, config), jax.random.key(0))
    return VQGAN(config, load_best(path, untrained))


def _make_batch(pictures: PictureSource, size: int, step: int) -> Batch:
    return {"pixels": pictures.batch(step * size, size)}


def _bytes(pixels: Float[np.ndarray, "*pictures 3"]) -> UInt8[np.ndarray, "*pictures 3"]:
    """Converts pixels in [0, 1] to bytes."""
    return (pixels * 255).round().astype(np.uint8)


def _codebook(params: Parameters) -> Float[Array, "codes embed_dim"]:
    return params["quantize"]["embedding"]["embedding"]


def _with_codebook(params: Parameters, codebook: Float[Array, "codes embed_dim"]) -> Parameters:
    return {**params, "quantize": {"embedding": {"embedding": codebook}}}
