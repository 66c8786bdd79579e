"""The optimizers: AdamW, and Muon for the matrices with AdamW for the rest; the rate is a function of the step."""

from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from smalti.models.layers import Parameters
from training.settings import OptimizerSettings


def schedule(rate: float, settings: OptimizerSettings, steps: int) -> optax.Schedule:
    """Returns the learning rate by step: a linear warm-up, then half a cosine down to its final share."""
    warmup = min(settings.warmup_steps, steps - 1)
    return optax.warmup_cosine_decay_schedule(
        rate / max(warmup, 1), rate, warmup, steps, rate * settings.final_share
    )


def make_optimizer(settings: OptimizerSettings, steps: int) -> optax.GradientTransformation:
    """Makes the optimizer of a run of so many steps."""
    rate = schedule(settings.learning_rate, settings, steps)
    if settings.name == "muon":
        update = muon(
            schedule(settings.matrix_learning_rate, settings, steps),
            weight_decay=settings.weight_decay,
            weight_decay_mask=_decays,
            adam_b1=settings.beta1,
            adam_b2=settings.beta2,
            adam_weight_decay=settings.weight_decay,
            adam_learning_rate=rate,
            muon_weight_dimension_numbers=_matrices,
        )
    else:
        update = optax.adamw(
            rate, settings.beta1, settings.beta2, weight_decay=settings.weight_decay, mask=_decays
        )
    return optax.chain(optax.clip_by_global_norm(settings.largest_gradient), update)


def _decays(params: Parameters) -> Any:
    """Selects what weight decay pulls on: products, not scales and biases."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: path[-1].key in ("kernel", "embedding"), params
    )


def _matrices(params: Parameters) -> Any:
    """Selects what Muon moves: the products inside the layers, which are stacked on axis 0.

    Embeddings and the head are tables with a row for each token, and Muon's authors leave them to Adam
    (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/).
    """

    def axes(path: tuple[Any, ...], leaf: jax.Array) -> MuonDimensionNumbers | None:
        inside = any("Layers" in str(part.key) for part in path)
        return MuonDimensionNumbers(1, 2) if inside and path[-1].key == "kernel" else None

    return jax.tree_util.tree_map_with_path(axes, params)
