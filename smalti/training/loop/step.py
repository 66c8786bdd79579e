"""One step of the optimizer in JAX: gradient accumulation, data parallel over the devices, one compiled program.

A step is a function of the state and the batch alone. Random numbers are drawn only where a batch is made, from the
run's seed and the step's number, so a resumed run draws the same ones.
"""

from collections.abc import Hashable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from smalti.errors import InvalidInputError
from smalti.models.layers import Parameters
from smalti.training.batches.batch import Batch

Metrics = dict[str, Array]
"""Numbers of a step, each a mean over the batch's pictures, among them "loss"."""
Extra = dict[str, Array]
"""Arrays that the loss passes to `Objective.after_update`; the first axis is the pictures."""


class TrainState(NamedTuple):
    """The state that a step changes and a checkpoint contains."""

    step: Int[Array, ""]
    """Number of steps done. It and the seed determine the next batch and every random number."""
    params: Parameters
    optimizer: Any
    memory: Any
    """State of the objective between steps, besides the weights; see `Objective.after_update`."""


@runtime_checkable
class Objective(Protocol):
    """A network with the loss that it is trained to minimize."""

    def initialize(self) -> tuple[Parameters, Any]:
        """Returns the untrained weights, and the memory before the first step."""

    def loss(
        self, params: Parameters, batch: Mapping[str, Array]
    ) -> tuple[Float[Array, ""], tuple[Metrics, Extra]]:
        """Returns the loss of a batch, averaged over its pictures, with its metrics and extra arrays."""

    def phase(self, step: int) -> Hashable:
        """Returns the kind of a step; a program of its own is compiled for each kind.

        XLA's CPU backend runs the branches of a condition inside a program several times slower.
        """
        return None

    def gradient(
        self, state: TrainState, batch: Mapping[str, Array], phase: Hashable
    ) -> tuple[Parameters, tuple[Metrics, Extra]]:
        """Returns the gradient for the weights, with metrics and extra arrays; by default that of `loss`."""

        def with_loss(params: Parameters) -> tuple[Float[Array, ""], tuple[Metrics, Extra]]:
            loss, (metrics, extra) = self.loss(params, batch)
            return loss, ({"loss": loss, **metrics}, extra)

        gradient, aux = jax.grad(with_loss, has_aux=True)(state.params)
        return gradient, aux

    def after_update(
        self, step: Int[Array, ""], params: Parameters, memory: Any, extra: Extra
    ) -> tuple[Parameters, Any, Metrics]:
        """Returns weights and memory after changes beyond the optimizer's, and metrics; part of the compiled step."""
        return params, memory, {}


class Stepper:
    """The state of a network in training, and the compiled step that advances it."""

    def __init__(
        self, objective: Objective, optimizer: optax.GradientTransformation, accumulate: int = 1
    ) -> None:
        """Initializes the untrained state, the same on all devices.

        Args:
            objective: the network and its loss.
            optimizer: turns gradients into updates.
            accumulate: number of parts in which the gradient of a step is computed.
        """
        self.accumulate = accumulate
        mesh = Mesh(np.array(jax.devices()), ("data",))
        self._replicated = NamedSharding(mesh, PartitionSpec())
        self._sharded = NamedSharding(mesh, PartitionSpec(None, "data"))
        self._step = jax.jit(
            partial(_step, objective, optimizer), donate_argnums=0, static_argnames=("phase",)
        )
        params, memory = objective.initialize()
        # Outside a program, each of many small operations would be compiled alone.
        state = TrainState(jnp.int32(0), params, jax.jit(optimizer.init)(params), memory)
        self.state = self.place(state)

    def place(self, state: TrainState) -> TrainState:
        """Copies a state to all devices."""
        return jax.device_put(state, self._replicated)

    def step(self, batch: Batch, phase: Hashable = None) -> Metrics:
        """Starts one step without waiting for it to finish.

        Args:
            batch: the batch.
            phase: kind of the step; see `Objective.phase`.

        Raises:
            InvalidInputError: the batch cannot be divided evenly among parts and devices.
        """
        self.state, metrics = self._step(self.state, self._split(batch), phase=phase)
        return metrics

    def _split(self, batch: Batch) -> dict[str, Array]:
        """Reshapes a batch to `[part, pictures of the part, ...]`; each device holds some pictures of every part."""
        size, devices = len(next(iter(batch.values()))), len(jax.devices())
        if size % (self.accumulate * devices):
            raise InvalidInputError(
                "batch_size",
                f"must be a multiple of accumulate times the number of devices, {self.accumulate} x {devices}, "
                f"not {size}",
            )
        return {
            name: jax.device_put(
                rows.reshape(self.accumulate, size // self.accumulate, *rows.shape[1:]), self._sharded
            )
            for name, rows in batch.items()
        }


def _step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    parts: Mapping[str, Array],
    phase: Hashable,
) -> tuple[TrainState, Metrics]:
    def add(total: Parameters, part: Mapping[str, Array]) -> tuple[Parameters, tuple[Metrics, Extra]]:
        gradient, aux = objective.gradient(state, part, phase)
        return jax.tree.map(jnp.add, total, gradient), aux

    count = len(next(iter(parts.values())))
    if count == 1:
        # XLA's CPU backend runs the body of a loop several times slower.
        first = {name: rows[0] for name, rows in parts.items()}
        gradient, aux = objective.gradient(state, first, phase)
        metrics, extra = jax.tree.map(lambda leaf: leaf[None], aux)
    else:
        total, (metrics, extra) = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, state.params), parts)
        gradient = jax.tree.map(lambda leaf: leaf / count, total)
    updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    extra = {name: rows.reshape(-1, *rows.shape[2:]) for name, rows in extra.items()}
    step = state.step + 1
    params, memory, more = objective.after_update(step, params, state.memory, extra)
    metrics = {name: values.mean() for name, values in metrics.items()} | more
    metrics["gradient_norm"] = optax.tree.norm(gradient)
    return TrainState(step, params, optimizer_state, memory), metrics
