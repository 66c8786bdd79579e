"""Finding models by name: those that ship with Smalti, and the user's own."""

import difflib
from dataclasses import dataclass
from pathlib import Path

from smalti.errors import ModelError, ModelNotFoundError
from smalti.registry.folder import ModelFolder
from smalti.registry.manifest import MANIFEST_FILE
from smalti.settings import settings

SHIPPED = Path(__file__).parent.parent / "assets"
DEFAULT = "pictograms"
"""Name of the shipped model that is used by default."""


@dataclass(frozen=True, kw_only=True)
class ListedModel:
    """A model that can be found by name."""

    name: str
    """Name of the folder."""
    path: Path
    shipped: bool
    """Whether it ships with Smalti."""
    model: ModelFolder | None = None
    """The model; None if its `model.json` is invalid."""
    problem: str = ""
    """Why the model cannot be used; empty if it can."""


def find(model: str | Path | None = None) -> ModelFolder:
    """Returns a model by its name or its folder.

    The user's models come before the shipped ones.

    Args:
        model: a name that `smalti models` lists, or a folder; None for the model that the settings name, or
            else the shipped one.

    Raises:
        ModelNotFoundError: there is no such model; lists the models that there are.
        ModelError: the folder is not a valid model.
    """
    model = model or settings().model
    folders = _folders()
    if model is None:
        shipped = _models_in(SHIPPED)
        if not shipped:
            raise ModelNotFoundError(f"this installation ships no model; name one. {_describe(folders)}")
        return ModelFolder.open(shipped.get(DEFAULT) or next(iter(shipped.values())))
    if isinstance(model, str) and model in folders:
        return ModelFolder.open(folders[model])
    if isinstance(model, Path) or "/" in model or Path(model).is_dir():
        if not Path(model).exists():
            raise ModelNotFoundError(
                f"{model}: no such folder; give another folder, or a name. {_describe(folders)}"
            )
        return ModelFolder.open(model)
    near = " or ".join(difflib.get_close_matches(model, folders, n=3))
    meant = f" Did you mean {near}?" if near else ""
    raise ModelNotFoundError(f"there is no model {model}.{meant} {_describe(folders)}")


def list_models() -> list[ListedModel]:
    """Returns the models that can be found by name, sorted; a user's model hides a shipped one of the same name."""
    listed = []
    for name, path in sorted(_folders().items()):
        shipped = path.parent == SHIPPED
        try:
            model = ModelFolder.open(path)
            listed.append(ListedModel(name=name, path=path, shipped=shipped, model=model))
        except ModelError as error:
            listed.append(ListedModel(name=name, path=path, shipped=shipped, problem=str(error)))
    return listed


def _folders() -> dict[str, Path]:
    """Returns the folder of each model by its name."""
    return _models_in(SHIPPED) | _models_in(settings().models)


def _models_in(library: Path | None) -> dict[str, Path]:
    """Returns the folder of each model in a library by its name, sorted."""
    if library is None:
        return {}
    found = sorted(path.parent for path in library.glob(f"*/{MANIFEST_FILE}"))
    return {path.name: path for path in found if not path.name.startswith(".")}


def _describe(folders: dict[str, Path]) -> str:
    if not folders:
        return "There are no models yet; see `smalti import`"
    return f"Known models: {', '.join(sorted(folders))}"
