"""The protocol of trainees, which the loop trains, and the trainee of the networks in JAX."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
from PIL import Image

from smalti.models.layers import Parameters
from smalti.training.batches.batch import Batch
from smalti.training.loop.optimizers import freeze, make_optimizer
from smalti.training.loop.settings import RunSettings
from smalti.training.loop.step import Metrics, Objective, Stepper
from smalti.training.prefetching import Prefetched, processes_for_batches


@runtime_checkable
class Trainee(Protocol):
    """A network in training, in any framework. The loop says when to step, evaluate and save."""

    @property
    def tokens_per_step(self) -> int:
        """Work of one step, in the unit that `RunSettings.counted` names."""

    @property
    def keeps_newest(self) -> bool:
        """Whether the newest weights are the best, whatever their held-out loss is."""

    @property
    def state(self) -> Any:
        """Everything that the next step depends on, as a tree of arrays. Checkpoints hold it."""

    @state.setter
    def state(self, state: Any) -> None: ...

    @property
    def weights(self) -> Any:
        """The part of the state that is kept as the best checkpoint, for the export."""

    def step(self, number: int) -> Mapping[str, Any]:
        """Takes step `number`, counted from 0, and returns its metrics, among them "loss"."""

    def evaluate(self) -> dict[str, float]:
        """Returns metrics on held-out data; "loss" chooses the best checkpoint. Does not change the state."""

    def sheet(self) -> Image.Image | None:
        """Returns a picture for people to look at, or None. Does not change the state."""


class JaxTrainee:
    """The part of a trainee that all networks in JAX share: the state and the steps."""

    keeps_newest = False

    def __init__(
        self,
        objective: Objective,
        settings: RunSettings,
        batch: Callable[[int], Batch],
        *,
        tokens_per_step: int,
        frozen: Collection[str] = (),
        apart: bool = False,
    ) -> None:
        """Initializes the untrained state.

        Args:
            objective: the network and its loss.
            settings: of the run.
            batch: makes the batch of a step from the step's number; called ahead of time in another thread.
            tokens_per_step: work of one step, in the unit that `RunSettings.counted` names.
            frozen: names of the parts of the network that the optimizer leaves as they are.
            apart: whether other processes may make the batches of an accelerator: `batch` does not use the accelerator,
                and can be pickled.
        """
        optimizer = freeze(make_optimizer(settings.optimizer, settings.steps), frozen)
        self.tokens_per_step = tokens_per_step
        self._objective = objective
        self._stepper = Stepper(objective, optimizer, settings.accumulate)
        self._batch = Prefetched(batch, processes_for_batches() if apart else 0)
        self._loss = jax.jit(lambda params, batch: objective.loss(params, batch)[0])

    @property
    def state(self) -> Any:
        """State of the stepper."""
        return self._stepper.state

    @state.setter
    def state(self, state: Any) -> None:
        self._stepper.state = self._stepper.place(state)

    @property
    def weights(self) -> Parameters:
        """Weights of the network."""
        return self._stepper.state.params

    def step(self, number: int) -> Metrics:
        """Takes a step on the batch of that number."""
        return self._stepper.step(self._batch(number), self._objective.phase(number))

    def loss_of(self, batch: Batch) -> float:
        """Returns the loss of a batch under the current weights."""
        return float(self._loss(self.weights, batch))
