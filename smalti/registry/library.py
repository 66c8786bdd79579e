"""Where models are found by name: those that come with Smalti, and the user's own."""

import difflib
from dataclasses import dataclass
from pathlib import Path

from smalti.errors import ModelError, ModelNotFoundError
from smalti.registry.folder import ModelFolder
from smalti.registry.manifest import MANIFEST_FILE
from smalti.settings import settings

SHIPPED = Path(__file__).parent.parent / "assets"
DEFAULT = "pictograms"
"""Which of the models that come with Smalti is used where none is named."""


@dataclass(frozen=True)
class Listed:
    """A model that has a name.

    Attributes:
        name: the name of its folder.
        path: its folder.
        shipped: whether it comes with Smalti.
        model: the model; None when its `model.json` cannot be used.
        problem: why it cannot be used; empty when it can.
    """

    name: str
    path: Path
    shipped: bool
    model: ModelFolder | None = None
    problem: str = ""


def find(model: str | Path | None = None) -> ModelFolder:
    """Returns a model by its name or its folder.

    A name is looked for among the user's models first, then among those that come with Smalti.

    Args:
        model: a name that `smalti models` lists, or a folder; None for the model of the settings, or, where
            these name none, the one that comes with Smalti.

    Raises:
        ModelNotFoundError: there is no such model; says which there are.
        ModelError: the folder is there, but it is no model that can be used.
    """
    model = model or settings().model
    places = _places()
    if model is None:
        shipped = _models_in(SHIPPED)
        if not shipped:
            raise ModelNotFoundError(f"no model comes with this Smalti; name one. {_known(places)}")
        return ModelFolder.open(shipped.get(DEFAULT) or next(iter(shipped.values())))
    if isinstance(model, str) and model in places:
        return ModelFolder.open(places[model])
    if isinstance(model, Path) or "/" in model or Path(model).is_dir():
        if not Path(model).exists():
            raise ModelNotFoundError(
                f"{model}: there is no such folder; give one, or a name. {_known(places)}"
            )
        return ModelFolder.open(model)
    near = " or ".join(difflib.get_close_matches(model, places, n=3))
    meant = f" Did you mean {near}?" if near else ""
    raise ModelNotFoundError(f"no model is called {model}.{meant} {_known(places)}")


def list_models() -> list[Listed]:
    """Returns the models that have a name, by name; of two of one name that of the user, as `find` does."""
    listed = []
    for name, path in sorted(_places().items()):
        shipped = path.parent == SHIPPED
        try:
            listed.append(Listed(name, path, shipped, ModelFolder.open(path)))
        except ModelError as error:
            listed.append(Listed(name, path, shipped, problem=str(error)))
    return listed


def _places() -> dict[str, Path]:
    """Returns the folders of the models by their names."""
    return _models_in(SHIPPED) | _models_in(settings().models)


def _models_in(library: Path) -> dict[str, Path]:
    """Returns the folders of one library's models by their names, in the order of these."""
    found = sorted(path.parent for path in library.glob(f"*/{MANIFEST_FILE}"))
    return {path.name: path for path in found if not path.name.startswith(".")}


def _known(places: dict[str, Path]) -> str:
    return f"There are: {', '.join(sorted(places))}" if places else "There are none yet; see `smalti import`"
