"""The tokenizer's network with its losses: reconstruction, codebook, perceptual and adversarial."""

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from smalti.models import vqgan
from smalti.models.layers import Parameters, apply, compute_dtype
from smalti.models.vqgan import VQGANConfig, VQGANModule
from smalti.training.loop.step import Extra, Metrics, Objective, TrainState
from smalti.training.losses.adversarial import Adversary, adaptive_weight
from smalti.training.losses.crops import crop
from smalti.training.losses.perceptual import Perceptual
from smalti.training.losses.reconstruction import reconstruction_loss
from smalti.training.trainers.quantizer import on_sphere, quantize, restart_dead
from smalti.training.trainers.tokenizer_settings import TokenizerSettings

CODES = ("encoder", "quant_conv", "quantize")
"""The parts of a VQGAN that turn pictures into tokens."""
DECODER = ("post_quant_conv", "decoder")
"""The parts that turn tokens into pictures."""
_FAINT = 0.05
"""Factor of the last layer's random weights."""
_EARLY_STEPS = 200
"""Most codes die in these steps."""
_EARLY_RESTARTS = 20
"""Interval between restarts in the early steps."""


class Phase(NamedTuple):
    """The losses of a step."""

    perceptual: bool
    adversarial: bool


class Coded(NamedTuple):
    """A picture between encoder and decoder."""

    nearest: Float[Array, "pictures rows columns embed_dim"]
    """Vectors of the codes, through which the gradient passes straight to the encoder."""
    vectors: Float[Array, "pictures rows columns embed_dim"]
    """Vectors of the encoder."""
    codes: Int[Array, "pictures rows columns"]
    loss: Float[Array, ""]
    """Loss of the codebook."""


class TokenizerObjective(Objective):
    """The network and its loss."""

    def __init__(self, settings: TokenizerSettings, start: Parameters | None = None) -> None:
        """Makes the network.

        Args:
            settings: of the run.
            start: weights to start from; untrained ones by default.

        Raises:
            ConfigError: the sizes do not fit together.
            ModelError: the weights of the perceptual loss cannot be used.
        """
        self.config = settings.config()
        self._settings = settings
        self._start = start
        self._module = VQGANModule(compute_dtype(), self.config)
        self._perceptual: Perceptual | None = None
        if (told := settings.perceptual) is not None:
            self._perceptual = Perceptual.load(Path(told.weights), Path(told.heads) if told.heads else None)
        self._adversary: Adversary | None = None
        if settings.adversarial is not None:
            self._adversary = Adversary(settings.adversarial, compute_dtype())

    @property
    def frozen(self) -> tuple[str, ...]:
        """The parts of the network that are not trained."""
        return CODES if self._settings.freeze == "codes" else ()

    def initialize(self) -> tuple[Parameters, Any]:
        """Returns the first weights and the memory.

        Untrained weights have a codebook on the sphere. The memory has the number of uses of each code since the last
        restart, the discriminator, and the moving average of the decoder, as far as there are such.
        """
        weights_key, codes_key, judge_key = jax.random.split(jax.random.key(self._settings.seed), 3)
        params = self._start
        if params is None:
            codebook = on_sphere(jax.random.normal(codes_key, (self.config.n_embed, self.config.embed_dim)))
            params = _with_codebook(untrained_weights(self.config, weights_key), codebook)
        memory: dict[str, Any] = {"used": jnp.zeros(self.config.n_embed, jnp.int32)}
        if self._adversary is not None:
            memory["discriminator"] = self._adversary.initialize(judge_key)
        if self._settings.average:
            # A copy, since a step gives up the memory of the weights.
            memory["average"] = jax.tree.map(jnp.array, {name: params[name] for name in DECODER})
        return params, memory

    def phase(self, step: int) -> Phase:
        """Returns the losses of a step."""
        perceptual, adversarial = self._settings.perceptual, self._settings.adversarial
        return Phase(
            perceptual=perceptual is not None and step >= perceptual.start,
            adversarial=adversarial is not None and step >= adversarial.start,
        )

    def loss(
        self, params: Parameters, batch: Mapping[str, Array]
    ) -> tuple[Float[Array, ""], tuple[Metrics, Extra]]:
        """Compares pictures with their reconstructions, without the perceptual and the adversarial loss."""
        pixels = batch["pixels"].astype(jnp.float32) / 255
        coded = self._encode(params, pixels)
        reconstructed = apply(self._module, params, coded.nearest, method=VQGANModule.pixels)
        loss, terms = reconstruction_loss(self._settings.loss, reconstructed, pixels)
        metrics = {**terms, "codebook": coded.loss}
        extra = {"vectors": coded.vectors, "codes": coded.codes}
        return loss + self._settings.loss.codebook * coded.loss, (metrics, extra)

    def gradient(
        self, state: TrainState, batch: Mapping[str, Array], phase: Hashable
    ) -> tuple[Parameters, tuple[Metrics, Extra]]:
        """Returns the gradient of the losses of a phase.

        The gradient for the reconstruction is computed first, and then sent back through the network once. For the
        adaptive weight, that of each loss is also sent back to the last layer alone.
        """
        assert isinstance(phase, Phase)
        pixels = batch["pixels"].astype(jnp.float32) / 255
        trained = {name: part for name, part in state.params.items() if name not in self.frozen}

        def reconstruct(weights: Parameters) -> tuple[tuple[Array, Array], Coded]:
            params = {**state.params, **weights}
            coded = self._encode(params, pixels)
            return (apply(self._module, params, coded.nearest, method=VQGANModule.pixels), coded.loss), coded

        (reconstructed, codebook_loss), send_back, coded = jax.vjp(reconstruct, trained, has_aux=True)

        def compare(drawn: Array) -> tuple[Float[Array, ""], Metrics]:
            loss, terms = reconstruction_loss(self._settings.loss, drawn, pixels)
            if phase.perceptual:
                terms["perceptual"] = self._perceptual_loss(drawn, pixels, batch["corners"])
                loss += terms["perceptual"]
            return loss, terms

        (loss, metrics), direction = jax.value_and_grad(compare, has_aux=True)(reconstructed)
        metrics["codebook"] = codebook_loss
        loss += self._settings.loss.codebook * codebook_loss
        extra = {"vectors": coded.vectors, "codes": coded.codes}
        if phase.adversarial:
            assert self._adversary is not None
            adversary, told, corners = self._adversary, self._adversary.settings, batch["corners"]

            def fool(drawn: Array) -> Float[Array, ""]:
                judge = state.memory["discriminator"]
                return adversary.decoder_loss(judge, crop(drawn, corners, told.crop))

            def last_layer(towards: Array) -> Array:
                # The compiler leaves out the layers before it, since their gradients are not used.
                weights = send_back((towards, jnp.zeros_like(codebook_loss)))[0]
                return weights["decoder"]["conv_out"]["kernel"]

            metrics["adversarial"], more = jax.value_and_grad(fool)(reconstructed)
            weight = adaptive_weight(last_layer(direction), last_layer(more), told.weight)
            metrics["adversarial_weight"] = weight
            loss += weight * metrics["adversarial"]
            direction += weight * more
            extra["real"] = crop(pixels, corners, told.crop)
            extra["drawn"] = crop(reconstructed, corners, told.crop)
        share = jnp.full_like(codebook_loss, self._settings.loss.codebook)
        gradient = send_back((direction, share))[0]
        still = jax.tree.map(jnp.zeros_like, {name: state.params[name] for name in self.frozen})
        return {**gradient, **still}, ({"loss": loss, **metrics}, extra)

    def after_update(
        self, step: Int[Array, ""], params: Parameters, memory: Any, extra: Extra
    ) -> tuple[Parameters, Any, Metrics]:
        """Keeps the codes on the sphere, restarts unused ones when it is time, and trains the discriminator."""
        memory = dict(memory)
        metrics: Metrics = {}
        if "drawn" in extra:
            assert self._adversary is not None
            memory["discriminator"], metrics = self._adversary.learn(
                memory["discriminator"], extra["real"], extra["drawn"]
            )
        if decay := self._settings.average:
            decoder = {name: params[name] for name in DECODER}
            memory["average"] = optax.incremental_update(decoder, memory["average"], 1 - decay)
        if not self.frozen:
            params, memory["used"] = self._tend_codes(step, params, memory["used"], extra)
        return params, memory, metrics

    def _encode(self, params: Parameters, pixels: Float[Array, "pictures height width 3"]) -> Coded:
        vectors = apply(self._module, params, pixels, method=VQGANModule.vectors)
        if self.frozen:
            # As the exported model does it: the codes of other trainers may have any length.
            codes = apply(self._module, params, vectors, method=VQGANModule.nearest)
            return Coded(_codebook(params)[codes], vectors, codes, jnp.float32(0))
        vectors = on_sphere(vectors)
        nearest, codes, loss = quantize(vectors, _codebook(params), self._settings.loss.commitment)
        return Coded(nearest, vectors, codes, loss)

    def _perceptual_loss(self, drawn: Array, pixels: Array, corners: Array) -> Float[Array, ""]:
        told = self._settings.perceptual
        assert self._perceptual is not None
        assert told is not None
        distance = self._perceptual.distance(
            crop(drawn, corners, told.crop), crop(pixels, corners, told.crop)
        )
        return told.weight * distance

    def _tend_codes(
        self, step: Int[Array, ""], params: Parameters, used: Int[Array, " codes"], extra: Extra
    ) -> tuple[Parameters, Int[Array, " codes"]]:
        settings = self._settings
        codebook = on_sphere(_codebook(params))
        used = used.at[extra["codes"].reshape(-1)].add(1)
        early = jnp.minimum(_EARLY_RESTARTS, settings.restart.every)
        every = jnp.where(step <= _EARLY_STEPS, early, settings.restart.every)
        due = (step % every == 0) & (step <= settings.restart.until * settings.steps)
        vectors = jax.lax.stop_gradient(extra["vectors"]).reshape(-1, self.config.embed_dim)
        key = jax.random.fold_in(jax.random.key(settings.seed), step)
        codebook = jnp.where(due, restart_dead(codebook, used, vectors, key), codebook)
        return _with_codebook(params, codebook), jnp.where(due, 0, used)


def untrained_weights(config: VQGANConfig, key: Array) -> Parameters:
    """Returns the random weights of a VQGAN whose pictures are nearly gray.

    With random weights in its last layer, a decoder would first have to unlearn a strong pattern.
    """
    params = vqgan.initialize(config, key)
    last = params["decoder"]["conv_out"]
    gray = {"kernel": _FAINT * last["kernel"], "bias": jnp.full_like(last["bias"], 0.5)}
    return {**params, "decoder": {**params["decoder"], "conv_out": gray}}


def _codebook(params: Parameters) -> Float[Array, "codes embed_dim"]:
    return params["quantize"]["embedding"]["embedding"]


def _with_codebook(params: Parameters, codebook: Float[Array, "codes embed_dim"]) -> Parameters:
    return {**params, "quantize": {"embedding": {"embedding": codebook}}}
