"""One step of the optimizer in JAX: gradient accumulation, data parallel over the devices, one compiled program.

A step is a function of the state and the batch alone. All that is random in training is drawn where the batch is
made, from the run's seed and the number of the step, so a resumed run draws the same.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from smalti.errors import InvalidInputError
from smalti.models.layers import Parameters
from smalti.training.batches.prefetch import Prefetched

Batch = Mapping[str, np.ndarray]
"""Arrays whose first axis is the pictures of a step."""
Metrics = dict[str, Array]
"""Numbers of a step, each a mean over the batch's pictures; "loss" is among them."""
Extra = dict[str, Array]
"""Arrays that the loss hands on to what follows the update; the first axis is the pictures."""


class State(NamedTuple):
    """What a step changes, and what a checkpoint holds."""

    step: Int[Array, ""]
    """Steps done; batches and all random numbers follow from it and the seed."""
    params: Parameters
    optimizer: Any
    memory: Any
    """What a task remembers between steps beside the weights; see `Task.after_update`."""


class Task(Protocol):
    """A network with its loss: what there is to be trained."""

    def initialize(self) -> tuple[Parameters, Any]:
        """Returns the untrained weights, and the memory before the first step."""

    def loss(
        self, params: Parameters, batch: Mapping[str, Array]
    ) -> tuple[Float[Array, ""], tuple[Metrics, Extra]]:
        """Returns the loss of a batch, a mean over its pictures, with its metrics and extra arrays."""

    def after_update(
        self, step: Int[Array, ""], params: Parameters, memory: Any, extra: Extra
    ) -> tuple[Parameters, Any]:
        """Returns weights and memory after what the optimizer does not do; part of the compiled step."""
        return params, memory


class Stepper:
    """Trains a task: keeps its state, and takes steps."""

    def __init__(self, task: Task, optimizer: optax.GradientTransformation, accumulate: int = 1) -> None:
        """Draws the untrained state, the same on all devices.

        Args:
            task: what is trained.
            optimizer: how.
            accumulate: in how many parts the gradient of a step is computed.
        """
        self.accumulate = accumulate
        mesh = Mesh(np.array(jax.devices()), ("data",))
        self._replicated = NamedSharding(mesh, PartitionSpec())
        self._shared_out = NamedSharding(mesh, PartitionSpec(None, "data"))
        self._step = jax.jit(partial(_step, task, optimizer), donate_argnums=0)
        params, memory = task.initialize()
        self.state = self.place(State(jnp.int32(0), params, optimizer.init(params), memory))

    def place(self, state: State) -> State:
        """Returns the state on all devices."""
        return jax.device_put(state, self._replicated)

    def step(self, batch: Batch) -> Metrics:
        """Takes one step; does not wait for its end.

        Raises:
            InvalidInputError: the devices cannot share the batch out evenly.
        """
        self.state, metrics = self._step(self.state, self._split(batch))
        return metrics

    def _split(self, batch: Batch) -> dict[str, Array]:
        """Lays a batch out as `[part, pictures of the part, ...]`; each device holds some pictures of every part."""
        size, devices = len(next(iter(batch.values()))), len(jax.devices())
        if size % (self.accumulate * devices):
            raise InvalidInputError(
                "batch_size",
                f"{size} pictures in {self.accumulate} parts cannot be shared by {devices} devices",
            )
        return {
            name: jax.device_put(
                rows.reshape(self.accumulate, size // self.accumulate, *rows.shape[1:]), self._shared_out
            )
            for name, rows in batch.items()
        }


class SteppedTrainee:
    """What every trainer in JAX has: its state is a stepper's, and each step has a batch of its own."""

    def __init__(self, stepper: Stepper, batch: Callable[[int], Batch]) -> None:
        """Joins the two.

        Args:
            stepper: takes the steps.
            batch: makes the batch of a step, a function of its number; the next one is made in the background.
        """
        self._stepper = stepper
        self._batch = Prefetched(batch)

    @property
    def state(self) -> Any:
        """The state of the optimizer's step."""
        return self._stepper.state

    @state.setter
    def state(self, state: Any) -> None:
        self._stepper.state = self._stepper.place(state)

    @property
    def weights(self) -> Parameters:
        """The network's weights."""
        return self._stepper.state.params

    def step(self, number: int) -> Metrics:
        """Takes a step on the batch of its number."""
        return self._stepper.step(self._batch(number))


def _step(
    task: Task, optimizer: optax.GradientTransformation, state: State, parts: Mapping[str, Array]
) -> tuple[State, Metrics]:
    gradient_of: Callable[..., Any] = jax.grad(
        lambda params, part: _with_loss(task, params, part), has_aux=True
    )

    def add(total: Parameters, part: Mapping[str, Array]) -> tuple[Parameters, tuple[Metrics, Extra]]:
        gradient, aux = gradient_of(state.params, part)
        return jax.tree.map(jnp.add, total, gradient), aux

    count = len(next(iter(parts.values())))
    if count == 1:
        # XLA's CPU backend runs what is inside a loop several times slower.
        gradient, aux = gradient_of(state.params, {name: rows[0] for name, rows in parts.items()})
        metrics, extra = jax.tree.map(lambda leaf: leaf[None], aux)
    else:
        total, (metrics, extra) = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, state.params), parts)
        gradient = jax.tree.map(lambda leaf: leaf / count, total)
    updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    extra = {name: rows.reshape(-1, *rows.shape[2:]) for name, rows in extra.items()}
    step = state.step + 1
    params, memory = task.after_update(step, params, state.memory, extra)
    metrics = {name: values.mean() for name, values in metrics.items()}
    metrics["gradient_norm"] = optax.tree.norm(gradient)
    return State(step, params, optimizer_state, memory), metrics


def _with_loss(
    task: Task, params: Parameters, part: Mapping[str, Array]
) -> tuple[Float[Array, ""], tuple[Metrics, Extra]]:
    loss, (metrics, extra) = task.loss(params, part)
    return loss, ({"loss": loss, **metrics}, extra)
