"""The adversarial loss: a discriminator learns to tell pictures from reconstructions, and the decoder to fool it.

As in VQGAN (Esser et al. 2021, https://arxiv.org/abs/2012.09841, section 3.1), except that the discriminator has group
norms: with batch norms, what it says of a picture would depend on the other pictures.
"""

from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Float
from pydantic import Field, model_validator

from smalti.models.layers import Parameters, apply, precision
from smalti.training.loop.settings import Count, Rate, Share
from smalti.validation import Strict

_CHANNELS_OF_A_GROUP = 8
_DECAY = 0.99
"""Of the moving averages of LeCam."""
_MAX_WEIGHT = 1e4
_MAX_WIDENING = 8


class AdversarialSettings(Strict):
    """Settings of the adversarial loss."""

    weight: Annotated[float, Field(gt=0)] = 0.5
    """Factor of the adaptive weight; see `adaptive_weight`."""
    start: Annotated[int, Field(ge=0)] = 0
    """Step from which on there is an adversarial loss, and the discriminator learns."""
    crop: Count = 64
    """Side in pixels of the part of each picture that the discriminator sees."""
    layers: Count = 3
    """Convolutions of stride 2."""
    ch: Annotated[int, Field(ge=8, multiple_of=_CHANNELS_OF_A_GROUP)] = 32
    """Channels of the first convolution."""
    learning_rate: Rate = 2e-4
    beta1: Share = 0.5
    beta2: Share = 0.9
    lecam: Annotated[float, Field(ge=0)] = 0.001
    """Weight of LeCam's regularization (Tseng et al. 2021, https://arxiv.org/abs/2104.03310, equation 4)."""
    r1: Annotated[float, Field(ge=0)] = 0.0
    """Weight γ of the gradient penalty R1 (Mescheder et al. 2018, https://arxiv.org/abs/1801.04406, equation 9)."""

    @model_validator(mode="after")
    def _something_is_left_of_a_crop(self) -> "AdversarialSettings":
        smallest = 3 * 2**self.layers
        if self.crop < smallest:
            raise ValueError(f"crop: must be at least {smallest} with {self.layers} layers, not {self.crop}")
        return self


class DiscriminatorState(NamedTuple):
    """The state of a discriminator in training."""

    params: Parameters
    optimizer: Any
    real: Float[Array, ""]
    """Moving average of what it says of pictures."""
    drawn: Float[Array, ""]
    """Moving average of what it says of reconstructions."""


class PatchDiscriminator(nn.Module):
    """Says of overlapping patches whether they are real (Isola et al. 2017, https://arxiv.org/abs/1611.07004)."""

    ch: int
    layers: int
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, pixels: Float[Array, "pictures height width 3"]
    ) -> Float[Array, "pictures rows columns"]:
        """Returns a number for each patch, the larger the more real."""

        def conv(features: int, stride: int, name: str, *, bias: bool) -> nn.Conv:
            return nn.Conv(
                features, (4, 4), stride, padding=1, use_bias=bias, dtype=self.dtype, name=name,
                kernel_init=nn.initializers.normal(0.02), precision=precision(self.dtype),
            )  # fmt: skip

        x = nn.leaky_relu(conv(self.ch, 2, "conv_0", bias=True)(2 * pixels - 1), 0.2)
        for layer in range(1, self.layers + 1):
            features = self.ch * min(2**layer, _MAX_WIDENING)
            x = conv(features, 2 if layer < self.layers else 1, f"conv_{layer}", bias=False)(x)
            x = nn.GroupNorm(None, group_size=_CHANNELS_OF_A_GROUP, dtype=self.dtype, name=f"norm_{layer}")(x)
            x = nn.leaky_relu(x, 0.2)
        return conv(1, 1, "conv_out", bias=True)(x)[..., 0].astype(jnp.float32)


class Adversary:
    """A discriminator, its loss, and the decoder's loss against it."""

    def __init__(self, settings: AdversarialSettings, dtype: DTypeLike) -> None:
        self.settings = settings
        self._module = PatchDiscriminator(settings.ch, settings.layers, dtype)
        self._optimizer = optax.adam(settings.learning_rate, settings.beta1, settings.beta2)

    def initialize(self, key: Array) -> DiscriminatorState:
        """Returns an untrained discriminator."""
        side = self.settings.crop
        params = jax.jit(self._module.init)(key, jnp.zeros((1, side, side, 3)))["params"]
        # Two arrays, since a step gives up the memory of both.
        return DiscriminatorState(params, self._optimizer.init(params), jnp.zeros(()), jnp.zeros(()))

    def decoder_loss(
        self, state: DiscriminatorState, drawn: Float[Array, "pictures height width 3"]
    ) -> Float[Array, ""]:
        """Returns the loss of a decoder: minus what the discriminator says of its pictures."""
        return -apply(self._module, state.params, drawn).mean()

    def learn(
        self,
        state: DiscriminatorState,
        real: Float[Array, "pictures height width 3"],
        drawn: Float[Array, "pictures height width 3"],
    ) -> tuple[DiscriminatorState, dict[str, Array]]:
        """Returns the discriminator after a step with the hinge loss, and the metrics of the step."""

        def loss(params: Parameters) -> tuple[Float[Array, ""], tuple[Float[Array, ""], Float[Array, ""]]]:
            of_real, of_drawn = (apply(self._module, params, pictures) for pictures in (real, drawn))
            value = (nn.relu(1 - of_real).mean() + nn.relu(1 + of_drawn).mean()) / 2
            if self.settings.lecam:
                # Only what lies beyond the other side's average counts, as in the authors' code.
                beyond = jnp.square(nn.relu(of_real - state.drawn)).mean()
                beyond += jnp.square(nn.relu(state.real - of_drawn)).mean()
                value += self.settings.lecam * beyond
            if self.settings.r1:
                slopes = jax.grad(lambda pictures: apply(self._module, params, pictures).sum())(real)
                value += self.settings.r1 / 2 * jnp.square(slopes).sum((1, 2, 3)).mean()
            return value, (of_real.mean(), of_drawn.mean())

        (value, said), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
        updates, optimizer = self._optimizer.update(gradient, state.optimizer, state.params)
        averages = optax.incremental_update(said, (state.real, state.drawn), 1 - _DECAY)
        metrics = {"discriminator": value, "says_of_real": said[0], "says_of_drawn": said[1]}
        return DiscriminatorState(optax.apply_updates(state.params, updates), optimizer, *averages), metrics


def adaptive_weight(
    reconstruction: Float[Array, "*kernel"], adversarial: Float[Array, "*kernel"], factor: float
) -> Float[Array, ""]:
    """Returns the weight of the adversarial loss (Esser et al. 2021, equation 7), times a factor.

    Args:
        reconstruction: gradient of the reconstruction's loss for the decoder's last layer.
        adversarial: gradient of the adversarial loss for the same layer.
        factor: a setting; at 1 both losses pull the layer equally.
    """
    ratio = jnp.linalg.norm(reconstruction.ravel()) / (jnp.linalg.norm(adversarial.ravel()) + 1e-4)
    return factor * jnp.minimum(ratio, _MAX_WEIGHT)
