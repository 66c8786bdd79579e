"""Which workers the models of a system need: models that share files share the workers of these files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from smalti.errors import InvalidInputError
from smalti.messages import RouteKey, Stage
from smalti.registry.folder import ModelFolder
from smalti.registry.routes import route_keys

STAGES: Final[Mapping[str, Stage]] = {
    "encoder": Stage.ENCODE,
    "generator": Stage.GENERATE,
    "decoder": Stage.DECODE,
    "ranker": Stage.RANK,
    "refiner": Stage.REFINE,
}
"""The services that work for a model, and the stage of each."""


@dataclass(frozen=True, kw_only=True)
class Worker:
    """A process of a stage."""

    name: str
    """Its name in the system: that of the service, and a number from the second on, such as "generator-2"."""
    service: str
    models: tuple[ModelFolder, ...]
    """The models that it serves; it loads the first."""


def plan_workers(models: Sequence[ModelFolder]) -> list[Worker]:
    """Returns the workers that serve models: one for each stage and each set of files that the stage works with.

    Raises:
        InvalidInputError: a model is given twice.
    """
    revisions: dict[str, ModelFolder] = {}
    for model in models:
        if (same := revisions.setdefault(model.revision, model)) is not model:
            problem = f"{same.path} and {model.path} are the same model; give it once"
            raise InvalidInputError("model", problem)
    workers = []
    for service, stage in STAGES.items():
        served: dict[RouteKey, list[ModelFolder]] = {}
        for model in models:
            served.setdefault(route_keys(model)[stage], []).append(model)
        for number, sharing in enumerate(served.values(), 1):
            name = service if number == 1 else f"{service}-{number}"
            workers.append(Worker(name=name, service=service, models=tuple(sharing)))
    return workers
