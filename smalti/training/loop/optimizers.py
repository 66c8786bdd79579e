"""The optimizers: AdamW, or Muon for matrices and convolutions and AdamW for the rest.

The rates are functions of the step.
"""

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, muon

from smalti.models.layers import Parameters
from smalti.training.loop.settings import OptimizerSettings

_CONVOLUTION = 4
"""Dimensions of a kernel: rows, columns, input channels, output channels."""


def schedule(rate: float, settings: OptimizerSettings, steps: int) -> optax.Schedule:
    """Returns the learning rate by step: a linear warm-up, then half a cosine down to the final share."""
    warmup = min(settings.warmup_steps, steps - 1)
    return optax.warmup_cosine_decay_schedule(
        rate / max(warmup, 1), rate, warmup, steps, rate * settings.final_share
    )


def make_optimizer(settings: OptimizerSettings, steps: int) -> optax.GradientTransformation:
    """Makes the optimizer of a run with `steps` steps."""
    rate = schedule(settings.learning_rate, settings, steps)
    if settings.name == "muon":
        update = _by_layer(
            muon(
                schedule(settings.matrix_learning_rate, settings, steps),
                weight_decay=settings.weight_decay,
                weight_decay_mask=_decays,
                adam_b1=settings.beta1,
                adam_b2=settings.beta2,
                adam_weight_decay=settings.weight_decay,
                adam_learning_rate=rate,
                muon_weight_dimension_numbers=_matrices,
            )
        )
    else:
        update = optax.adamw(
            rate, settings.beta1, settings.beta2, weight_decay=settings.weight_decay, mask=_decays
        )
    return optax.chain(optax.clip_by_global_norm(settings.largest_gradient), update)


def freeze(optimizer: optax.GradientTransformation, frozen: Collection[str]) -> optax.GradientTransformation:
    """Returns an optimizer that leaves some parts of a network as they are, to the bit.

    Args:
        optimizer: for the other parts.
        frozen: names of the parts, the first ones in the paths of their weights.
    """
    if not frozen:
        return optimizer

    def labels(params: Parameters) -> dict[str, str]:
        return {name: "frozen" if name in frozen else "trained" for name in params}

    return optax.partition({"trained": optimizer, "frozen": optax.set_to_zero()}, labels)


def _by_layer(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns an optimizer that gets stacked layers as separate matrices.

    Muon multiplies each matrix by itself. XLA's CPU backend does this several times faster for separate matrices than
    for a stack, and half of the time of a step was spent on it.
    """

    def init(params: Parameters) -> optax.OptState:
        return optimizer.init(_unstack(params))

    def update(
        updates: Parameters, state: optax.OptState, params: Parameters | None = None
    ) -> tuple[Parameters, optax.OptState]:
        new, state = optimizer.update(_unstack(updates), state, None if params is None else _unstack(params))
        return _restack(updates, new), state

    return optax.GradientTransformation(init, update)


def _unstack(tree: Parameters) -> Any:
    """Replaces each stacked leaf by the list of its layers."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: list(leaf) if _is_stacked(path) else leaf, tree
    )


def _restack(like: Parameters, tree: Any) -> Any:
    """Reverses `_unstack`; `like` is a tree with stacked leaves."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf, layers: jnp.stack(layers) if _is_stacked(path) else layers, like, tree
    )


def _is_stacked(path: tuple[Any, ...]) -> bool:
    return any("Layers" in str(part) for part in path)


def _decays(params: Parameters) -> Any:
    """Selects the weights with weight decay: matrices and embeddings, but not scales and biases."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: _name(path) in ("kernel", "embedding"), params)


def _matrices(params: Parameters) -> Any:
    """Selects the weights that Muon updates: the matrices inside the layers, and the kernels of convolutions.

    A kernel counts as the matrix that maps a patch to the output channels. Embeddings and the head have a row for each
    token, and Muon's authors leave them to Adam (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/).
    """

    def axes(path: tuple[Any, ...], leaf: jax.Array) -> MuonDimensionNumbers | None:
        if _name(path) != "kernel":
            return None
        if leaf.ndim == _CONVOLUTION:
            return MuonDimensionNumbers((0, 1, 2), 3)
        return MuonDimensionNumbers(0, 1) if _is_stacked(path) else None

    return jax.tree_util.tree_map_with_path(axes, params)


def _name(path: tuple[Any, ...]) -> str:
    """Returns the name of a weight, without the index of the layer that may follow it."""
    return next(str(part.key) for part in reversed(path) if isinstance(part, jax.tree_util.DictKey))
