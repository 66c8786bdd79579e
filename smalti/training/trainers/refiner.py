"""Training the refiner: a U-Net that learns to draw a picture from what its tokens hold of it."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, UInt8
from PIL import Image
from pydantic import Field

from smalti.engines.refiner import flow
from smalti.models import refiner
from smalti.models.layers import Parameters, compute_dtype
from smalti.models.refiner import Refiner, RefinerConfig
from smalti.parameters import Refinement
from smalti.training.batches.batch import Batch
from smalti.training.batches.pairs import PairSource
from smalti.training.batches.random_numbers import generator_at
from smalti.training.batches.second_pass import RefinerBatches
from smalti.training.loop.settings import Count, RunSettings, Share
from smalti.training.loop.sheets import sheet
from smalti.training.loop.step import Extra, Metrics, Objective
from smalti.training.loop.trainee import JaxTrainee
from smalti.training.similarity import psnr
from smalti.validation import Strict

_MIN_TIME_LEFT = 0.15
"""The loss is divided by the square of the time left, but not by less than this, so that no time outweighs the rest."""
_SHEET_PICTURES = 12
_HELD_OUT_STREAM = 4


class RefinerSizes(Strict):
    """Sizes of the network, with their names in `config.json`; the model determines the others."""

    channels: tuple[Count, ...]
    num_res_blocks: Count = 2
    attention_heads: Count = 4
    patch_size: Count = 4
    upscale: Literal[1, 2, 4] = 2
    noise: Annotated[float, Field(ge=0, le=10)] = 0.3


class RefinerSettings(RunSettings):
    """Settings of a refiner's run."""

    counted: ClassVar[str] = "pictures"
    trains: Literal["refiner"] = "refiner"
    model: RefinerSizes
    replaced_codes: Share = 0.15
    """Largest share of a picture's codes that are replaced by near ones."""
    ema: Share = 0.999
    """Share of the old value in each step of the moving average of the weights, which is exported."""

    def config(self, code_dim: int, text_dim: int) -> RefinerConfig:
        """Returns the configuration of the network; raises `ConfigError` if the sizes do not fit together.

        Args:
            code_dim: width of the code vectors of the model's VQGAN.
            text_dim: width of the hidden states of the model's text encoder.
        """
        return RefinerConfig.from_fields(
            {**self.model.model_dump(), "code_dim": code_dim, "text_dim": text_dim}
        )


class RefinerObjective(Objective):
    """The network and its loss."""

    def __init__(self, config: RefinerConfig, settings: RefinerSettings) -> None:
        self.config = config
        self._settings = settings

    def initialize(self) -> tuple[Parameters, Any]:
        """Returns untrained weights, and their moving average."""
        params = refiner.initialize(self.config, jax.random.key(self._settings.seed))
        return params, {"ema": jax.tree.map(jnp.copy, params)}

    def loss(
        self, params: Parameters, batch: Mapping[str, Array]
    ) -> tuple[Float[Array, ""], tuple[Metrics, Extra]]:
        """Returns the mean of `|x1_hat - x1|^2 / max(1 - t, 0.15)^2`, the error of the flow's velocity."""
        original = batch["original"].astype(jnp.float32) / 255
        start = batch["start"].astype(jnp.float32) / 255
        t = batch["t"]
        across = t[:, None, None, None]
        noisy = (1 - across) * (start + self.config.noise * batch["noise"]) + across * original
        predicted = refiner.predict(
            self.config,
            params,
            noisy,
            start,
            t,
            batch["codes"],
            batch["text"],
            batch["mask"],
            dtype=compute_dtype(),
        )
        square = jnp.square(predicted - original).mean((1, 2, 3))
        loss = (square / jnp.square(jnp.maximum(1 - t, _MIN_TIME_LEFT))).mean()
        return loss, ({"square": square.mean()}, {})

    def after_update(
        self, step: Int[Array, ""], params: Parameters, memory: Any, extra: Extra
    ) -> tuple[Parameters, Any, Metrics]:
        """Updates the moving average, which follows the weights faster at the beginning."""
        kept = jnp.minimum(self._settings.ema, (1 + step) / (10 + step))
        return params, {"ema": optax.incremental_update(params, memory["ema"], 1 - kept)}, {}


class RefinerTrainee(JaxTrainee):
    """A refiner in training."""

    def __init__(
        self, settings: RefinerSettings, config: RefinerConfig, pairs: PairSource, batches: RefinerBatches
    ) -> None:
        """Makes the untrained network and the held-out batches.

        Args:
            settings: of the run.
            config: of the network.
            pairs: the originals with their captions.
            batches: makes a batch of them.
        """
        super().__init__(
            RefinerObjective(config, settings), settings, batches, tokens_per_step=settings.batch_size
        )
        self._config = config
        self._held_out = [
            batches.batch_of(each, generator_at(0, _HELD_OUT_STREAM, number))
            for number, each in enumerate(pairs.held_out(settings.held_out))
        ]

    @property
    def weights(self) -> Parameters:
        """Moving average of the weights."""
        return self._stepper.state.memory["ema"]

    def evaluate(self) -> dict[str, float]:
        """Measures the loss on held-out pictures, and the PSNR of refined and of enlarged pictures to the originals."""
        refined, enlarged = [], []
        for batch in self._held_out:
            original = batch["original"] / 255.0
            refined.append(psnr(self._refine(batch).astype(np.float64), original))
            enlarged.append(psnr(batch["start"] / 255.0, original))
        return {
            "loss": float(np.mean([self.loss_of(batch) for batch in self._held_out])),
            "psnr": float(np.concatenate(refined).mean()),
            "psnr_enlarged": float(np.concatenate(enlarged).mean()),
        }

    def sheet(self) -> Image.Image:
        """Shows held-out pictures: rows of enlarged, refined and original ones."""
        batch = self._held_out[0]
        refined = (self._refine(batch).clip(0, 1) * 255).round().astype(np.uint8)
        rows: Sequence[UInt8[np.ndarray, "pictures height width 3"]] = [
            pictures[:_SHEET_PICTURES] for pictures in (batch["start"], refined, batch["original"])
        ]
        return sheet(np.concatenate(rows), columns=len(rows[0]))

    def _refine(self, batch: Batch) -> Float[np.ndarray, "pictures height width 3"]:
        """Returns refined pictures, not clipped, as the engine makes them by default."""
        start = batch["start"].astype(np.float32) / 255
        conditions = (batch["codes"], batch["text"], batch["mask"])
        return flow(Refiner(self._config, self.weights), start, batch["noise"], conditions, Refinement())
