"""Finding models by name."""

import json
import shutil
from pathlib import Path

import pytest

from smalti.errors import ModelError, ModelNotFoundError
from smalti.registry import library
from smalti.registry.folder import ModelFolder
from smalti.registry.manifest import MANIFEST_FILE
from smalti.registry.verify import find_problems


@pytest.fixture
def models(tiny: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder of models, which contains one model."""
    folder = tmp_path / "models"
    shutil.copytree(tiny.path, folder / "mosaic")
    monkeypatch.setenv("SMALTI_MODELS", str(folder))
    monkeypatch.delenv("SMALTI_MODEL", raising=False)
    return folder


def shipped_names() -> list[str]:
    return [entry.name for entry in library.list_models() if entry.shipped]


def test_model_is_found_by_name_and_by_folder(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("mosaic", models / "mosaic", str(models / "mosaic"), f"{models}/mosaic/"):
        assert library.find(place).path == models / "mosaic"
    monkeypatch.chdir(models)
    assert library.find("./mosaic").path == Path("mosaic")
    shutil.copytree("mosaic", models.parent / "cwd" / "here")
    monkeypatch.chdir(models.parent / "cwd")
    assert library.find("here").path == Path("here")


def test_name_has_precedence_over_a_folder(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (models.parent / "mosaic").mkdir()
    monkeypatch.chdir(models.parent)
    assert library.find("mosaic").path == models / "mosaic"


def test_default_is_the_setting_or_the_shipped_model(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = shipped_names()
    default = library.DEFAULT if library.DEFAULT in shipped else shipped[0]
    assert library.find().path == library.SHIPPED / default
    # A user's model with the same name does not become the default.
    shutil.copytree(models / "mosaic", models / default)
    assert library.find().path == library.SHIPPED / default
    monkeypatch.setenv("SMALTI_MODEL", "mosaic")
    assert library.find().path == models / "mosaic"
    monkeypatch.setenv("SMALTI_MODEL", "gone")
    with pytest.raises(ModelNotFoundError, match="there is no model gone"):
        library.find()


def test_model_of_the_user_has_precedence_over_a_shipped_one(models: Path) -> None:
    (name, *_) = shipped_names()
    assert library.find(name).path == library.SHIPPED / name
    shutil.copytree(models / "mosaic", models / name)
    assert library.find(name).path == models / name
    assert {entry.name: entry.path for entry in library.list_models()}[name] == models / name


def test_unknown_name_gets_similar_names_and_the_list(models: Path) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        library.find("mosiac")
    known = ", ".join(sorted(["mosaic", *shipped_names()]))
    assert str(caught.value) == f"there is no model mosiac. Did you mean mosaic? Known models: {known}"
    with pytest.raises(ModelNotFoundError) as caught:
        library.find("zzz")
    assert str(caught.value) == f"there is no model zzz. Known models: {known}"
    with pytest.raises(ModelNotFoundError, match=r"no such folder; give another folder, or a name\. Known"):
        library.find(models / "zzz")


def test_folder_without_a_model_is_refused(models: Path) -> None:
    with pytest.raises(ModelError, match=r"not a model folder: it has no model\.json"):
        library.find(models)


def test_list_contains_invalid_models(models: Path) -> None:
    (models / "broken").mkdir()
    (models / "broken" / MANIFEST_FILE).write_text("{")
    (models / "no model").mkdir()
    shutil.copytree(models / "mosaic", models / ".mosaic.partial")
    mine = {entry.name: entry for entry in library.list_models() if not entry.shipped}
    assert list(mine) == ["broken", "mosaic"]
    assert mine["mosaic"].model == ModelFolder.open(models / "mosaic")
    assert mine["broken"].model is None
    assert "cannot be read as JSON" in mine["broken"].problem


def test_missing_folder_of_models_is_empty(models: Path) -> None:
    shutil.rmtree(models)
    assert [entry.name for entry in library.list_models()] == shipped_names()


def test_shipped_models_are_intact() -> None:
    for entry in library.list_models():
        if entry.shipped:
            assert entry.model is not None
            assert find_problems(entry.model) == []
            assert entry.name == json.loads((entry.path / MANIFEST_FILE).read_text())["name"]
