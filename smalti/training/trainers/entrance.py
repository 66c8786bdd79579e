"""The one entrance to all trainers: settings and data in, a trainee for the loop out."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

from smalti.training.loop.settings import Network, Settings
from smalti.training.loop.trainee import Trainee
from smalti.training.trainers.inputs import Advance, Inputs

Prepare = Callable[[Settings, Inputs, Path, Advance], Trainee]
"""Makes the trainee of a run from the run's settings, its inputs and its folder.

What the trainee needs later is written to the folder, unless an earlier part of the run has written it. The last
argument is called while pictures are encoded. Raises `SmaltiError` if an input cannot be used.
"""


@dataclass(frozen=True, kw_only=True)
class Trainer(Generic[Settings]):
    """The settings and the entry function for training one kind of network."""

    settings: type[Settings]
    prepare: Prepare[Settings]


def find_trainer(network: Network) -> Trainer[Any]:
    """Returns the trainer of a network. Only its own module is imported: the ranker needs torch, the others JAX."""
    match network:
        case "tokenizer":
            from smalti.training.trainers import tokenizer, tokenizer_settings

            return Trainer(settings=tokenizer_settings.TokenizerSettings, prepare=tokenizer.prepare)
        case "generator":
            from smalti.training.trainers import generator, generator_inputs

            return Trainer(settings=generator.GeneratorSettings, prepare=generator_inputs.prepare)
        case "ranker":
            from smalti.training.trainers import ranker, ranker_inputs

            return Trainer(settings=ranker.RankerSettings, prepare=ranker_inputs.prepare)
        case "judge":
            from smalti.training.trainers import judge

            return Trainer(settings=judge.JudgeSettings, prepare=judge.prepare)
        case "refiner":
            from smalti.training.trainers import refiner, refiner_inputs

            return Trainer(settings=refiner.RefinerSettings, prepare=refiner_inputs.prepare)
