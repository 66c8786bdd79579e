"""Training the image tokenizer: a VQGAN that learns to draw pictures again from their tokens."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8
from PIL import Image
from pydantic import Field

from smalti.models import vqgan
from smalti.models.layers import Parameters, apply, compute_dtype
from smalti.models.vqgan import VQGAN, VQGANConfig, VQGANModule
from smalti.training.batches.sources import PictureSource
from smalti.training.loop.optimizers import make_optimizer
from smalti.training.loop.run_folder import SETTINGS_FILE, read_best, read_run_settings
from smalti.training.loop.settings import Count, RunSettings, Share
from smalti.training.loop.sheets import compare
from smalti.training.loop.step import Batch, Extra, Metrics, SteppedTrainee, Stepper
from smalti.training.similarity import psnr, ssim
from smalti.training.trainers.quantizer import on_sphere, quantize, restart_dead
from smalti.validation import Strict

_SHEET_PICTURES = 48
_EARLY = 200
_EARLY_EVERY = 20


class VQGANSizes(Strict):
    """The sizes of the network, by their names in `config.json`."""

    ch: Count
    ch_mult: tuple[Count, ...]
    num_res_blocks: Count
    attn_resolutions: tuple[Count, ...] = ()
    resolution: Count
    z_channels: Count
    embed_dim: Count
    n_embed: Count
    patch_size: Count = 1


class LossWeights(Strict):
    """What a picture drawn again is compared by; differences are of pixels in [-1, 1]."""

    absolute: Annotated[float, Field(ge=0)] = 1.0
    square: Annotated[float, Field(ge=0)] = 2.0
    edges: Annotated[float, Field(ge=0)] = 0.5
    """Of the absolute difference between neighbouring pixels' differences, across and down."""
    codebook: Annotated[float, Field(ge=0)] = 0.5
    commitment: Annotated[float, Field(ge=0)] = 0.25


class RestartSettings(Strict):
    """When codes that nobody uses move to where vectors are."""

    every: Count = 50
    """In the first 200 steps, when most codes die, it is every 20."""
    until: Share = 0.6
    """The share of the run after which codes stay, so that the decoder can learn all of them."""


class TokenizerSettings(RunSettings):
    """A run that trains a tokenizer."""

    trains: Literal["tokenizer"] = "tokenizer"
    model: VQGANSizes
    loss: LossWeights = LossWeights()
    restart: RestartSettings = RestartSettings()

    def config(self) -> VQGANConfig:
        """Returns the model's configuration; raises `ConfigError` when it is impossible."""
        return VQGANConfig.from_fields(self.model.model_dump())


class TokenizerTask:
    """The network and its loss."""

    def __init__(self, settings: TokenizerSettings) -> None:
        self.config = settings.config()
        self._settings = settings
        self._module = VQGANModule(compute_dtype(), self.config)

    def initialize(self) -> tuple[Parameters, Any]:
        """Returns untrained weights with a codebook on the sphere, and that no code was used."""
        weights_key, codes_key = jax.random.split(jax.random.key(self._settings.seed))
        codebook = on_sphere(jax.random.normal(codes_key, (self.config.n_embed, self.config.embed_dim)))
        params = _with_codebook(vqgan.initialize(self.config, weights_key), codebook)
        return params, {"used": jnp.zeros(self.config.n_embed, jnp.int32)}

    def loss(
        self, params: Parameters, batch: Mapping[str, Array]
    ) -> tuple[Float[Array, ""], tuple[Metrics, Extra]]:
        """Compares pictures with what comes back from their tokens."""
        weights = self._settings.loss
        pixels = batch["pixels"].astype(jnp.float32) / 255
        vectors = on_sphere(apply(self._module, params, pixels, method=VQGANModule.vectors))
        nearest, codes, codebook_loss = quantize(vectors, _codebook(params), weights.commitment)
        drawn = apply(self._module, params, nearest, method=VQGANModule.pixels)
        apart = 2 * (drawn - pixels)
        absolute, square = jnp.abs(apart).mean(), jnp.square(apart).mean()
        edges = jnp.abs(jnp.diff(apart, axis=1)).mean() + jnp.abs(jnp.diff(apart, axis=2)).mean()
        loss = weights.absolute * absolute + weights.square * square + weights.edges * edges
        metrics = {"absolute": absolute, "square": square, "edges": edges, "codebook": codebook_loss}
        return loss + weights.codebook * codebook_loss, (metrics, {"vectors": vectors, "codes": codes})

    def after_update(
        self, step: Int[Array, ""], params: Parameters, memory: Any, extra: Extra
    ) -> tuple[Parameters, Any]:
        """Puts the codes back onto the sphere, and now and then restarts those that nobody used."""
        settings = self._settings
        codebook = on_sphere(_codebook(params))
        used = memory["used"].at[extra["codes"].reshape(-1)].add(1)
        every = jnp.where(
            step <= _EARLY, jnp.minimum(_EARLY_EVERY, settings.restart.every), settings.restart.every
        )
        due = (step % every == 0) & (step <= settings.restart.until * settings.steps)
        vectors = jax.lax.stop_gradient(extra["vectors"]).reshape(-1, self.config.embed_dim)
        key = jax.random.fold_in(jax.random.key(settings.seed), step)
        codebook = jnp.where(due, restart_dead(codebook, used, vectors, key), codebook)
        return _with_codebook(params, codebook), {"used": jnp.where(due, 0, used)}


class TokenizerTrainee(SteppedTrainee):
    """Trains a tokenizer on pictures."""

    def __init__(self, settings: TokenizerSettings, pictures: PictureSource) -> None:
        """Makes the untrained model and the held-out pictures.

        Args:
            settings: of the run.
            pictures: of the model's resolution.
        """
        self.task = TokenizerTask(settings)
        super().__init__(
            Stepper(self.task, make_optimizer(settings.optimizer, settings.steps), settings.accumulate),
            partial(_make_batch, pictures, settings.batch_size),
        )
        self._held_out = pictures.held_out(settings.held_out)
        self._size = settings.batch_size
        self.tokens_per_step = settings.batch_size * self.task.config.tokens

    def evaluate(self) -> dict[str, float]:
        """Measures the loss of pixels, PSNR, SSIM, and how many codes are used, on held-out pictures."""
        drawn, codes = self._draw(self._held_out)
        apart = 2 * (drawn - self._held_out / 255)
        return {
            "loss": float(np.abs(apart).mean()),
            "psnr": float(psnr(drawn, self._held_out / 255).mean()),
            "ssim": float(ssim(drawn, self._held_out / 255).mean()),
            "codes_used": len(np.unique(codes)) / self.task.config.n_embed,
        }

    def sheet(self) -> Image.Image:
        """Lays held-out pictures above what comes back from their tokens."""
        pictures = self._held_out[:_SHEET_PICTURES]
        drawn, _ = self._draw(pictures)
        return compare(pictures, (drawn * 255).round().astype(np.uint8))

    def _draw(
        self, pictures: UInt8[np.ndarray, "pictures height width 3"]
    ) -> tuple[Float[np.ndarray, "pictures height width 3"], Int[np.ndarray, "pictures tokens"]]:
        """Returns pictures from their tokens, in [0, 1], and the tokens; as the exported model would."""
        model = VQGAN(self.task.config, self.weights)
        drawn, codes = [], []
        for start in range(0, len(pictures), self._size):
            part = pictures[start : start + self._size]
            codes.append(np.asarray(model.encode(part.astype(np.float32) / 255)))
            drawn.append(np.asarray(model.decode(codes[-1])))
        return np.concatenate(drawn).clip(0, 1), np.concatenate(codes)


def load_vqgan(path: Path) -> VQGAN:
    """Loads the best weights of a tokenizer's run, or a folder with a VQGAN in any format.

    Raises:
        InvalidInputError: the run is none of a tokenizer, or has no evaluated checkpoint.
        ModelError: the folder holds no VQGAN.
    """
    if not (path / SETTINGS_FILE).is_file():
        return VQGAN.load(path)
    config = read_run_settings(path, TokenizerSettings).config()
    untrained = jax.eval_shape(partial(vqgan.initialize, config), jax.random.key(0))
    return VQGAN(config, read_best(path, untrained))


def _make_batch(pictures: PictureSource, size: int, step: int) -> Batch:
    return {"pixels": pictures.batch(step * size, size)}


def _codebook(params: Parameters) -> Float[Array, "codes embed_dim"]:
    return params["quantize"]["embedding"]["embedding"]


def _with_codebook(params: Parameters, codebook: Float[Array, "codes embed_dim"]) -> Parameters:
    return {**params, "quantize": {"embedding": {"embedding": codebook}}}
