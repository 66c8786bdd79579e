"""Models in an object store: pushed once, pulled completely or not at all, and continued."""

import json
from pathlib import Path

import pytest

from harness.objects import store_settings_for
from harness.servers import S3Server
from smalti.errors import InvalidInputError, ModelError
from smalti.registry.folder import ModelFolder
from smalti.registry.manifest import MANIFEST_FILE
from smalti.registry.stored import pull_stored, push_model
from smalti.registry.verify import find_problems
from smalti.storage import ObjectStore, digest, open_store

PREFIX = "models-of-tests/"


@pytest.fixture
def store(s3: S3Server) -> ObjectStore:
    """A store without models."""
    store = open_store(store_settings_for(s3.url))
    store.check()
    store.delete(*(info.key for info in store.objects(PREFIX)))
    return store


def files_of(store: ObjectStore) -> list[str]:
    return [info.key for info in store.objects(f"{PREFIX}files/")]


def test_model_comes_back_as_it_was(store: ObjectStore, refining: ModelFolder, tmp_path: Path) -> None:
    sha256, sent = push_model(refining, store, PREFIX)
    assert sha256 == digest((refining.path / MANIFEST_FILE).read_bytes())
    assert sent == refining.size
    assert push_model(refining, store, PREFIX) == (sha256, 0)
    place = tmp_path / "models" / "tiny"
    pulled, received = pull_stored(store, PREFIX, sha256, out=place)
    assert pulled.manifest == refining.manifest
    assert find_problems(pulled) == []
    assert received == sum({each.sha256: each.size for each in refining.manifest.files.values()}.values())
    # Beside the folder there is nothing left.
    assert [path.name for path in place.parent.iterdir()] == ["tiny"]
    # The second time nothing is received: there is nothing any more.
    store.delete(*files_of(store))
    assert pull_stored(store, PREFIX, sha256, out=place)[1] == 0


def test_model_gets_another_name(
    store: ObjectStore, tiny: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256, _ = push_model(tiny, store, PREFIX)
    monkeypatch.setenv("SMALTI_MODELS", str(tmp_path))
    for _ in range(2):
        pulled, _ = pull_stored(store, PREFIX, sha256, name="other")
        assert (pulled.path, pulled.name, pulled.revision) == (tmp_path / "other", "other", tiny.revision)
    with pytest.raises(InvalidInputError, match=r"^name: 'a b' is not valid"):
        pull_stored(store, PREFIX, sha256, name="a b")


def test_interrupted_pull_goes_on(store: ObjectStore, tiny: ModelFolder, tmp_path: Path) -> None:
    sha256, _ = push_model(tiny, store, PREFIX)
    records = sorted(tiny.manifest.files.values(), key=lambda record: record.size)
    last = [*tiny.manifest.files.values()][-1]
    key = f"{PREFIX}files/{last.sha256}"
    content = store.get(key)
    store.delete(key)
    place = tmp_path / "tiny"
    with pytest.raises(
        ModelError, match=f"^there is no object {key}, which the model needs; push the model again$"
    ):
        pull_stored(store, PREFIX, sha256, out=place)
    assert not place.exists()
    # A file that was cut off in the middle, and those that are whole, are not asked for from the beginning.
    cut = tmp_path / ".tiny.smalti-pull" / records[-1].sha256
    half = records[-1].size // 2
    with cut.open("r+b") as file:
        file.truncate(half)
    store.delete(*(each for each in files_of(store) if each != f"{PREFIX}files/{cut.name}"))
    store.put(key, content)
    pulled, received = pull_stored(store, PREFIX, sha256, out=place)
    assert received == records[-1].size - half + last.size
    assert find_problems(pulled) == []
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_damage_is_found_in_the_store_and_here(store: ObjectStore, tiny: ModelFolder, tmp_path: Path) -> None:
    sha256, _ = push_model(tiny, store, PREFIX)
    place = tmp_path / "tiny"
    record = tiny.manifest.files["bart/model.safetensors"]
    key = f"{PREFIX}files/{record.sha256}"
    content = store.get(key)
    store.put(key, bytes(record.size))
    with pytest.raises(
        ModelError, match=f"^{key}: does not have the SHA-256 of its name; pull again, or push"
    ):
        pull_stored(store, PREFIX, sha256, out=place)
    assert not place.exists()
    # A push finds what is not what it should be, and the next pull does not go on from the damage.
    assert push_model(tiny, store, PREFIX)[1] == record.size
    assert store.get(key) == content
    pull_stored(store, PREFIX, sha256, out=place)
    (place / "bart" / "model.safetensors").write_bytes(bytes(record.size))
    with pytest.raises(
        ModelError, match=rf"model\.safetensors: changed: SHA-256.*; remove {place}, and pull it again"
    ):
        pull_stored(store, PREFIX, sha256, out=place)


def test_what_cannot_be_pulled(store: ObjectStore, tiny: ModelFolder, tmp_path: Path) -> None:
    place = tmp_path / "tiny"
    with pytest.raises(ModelError, match=f"^sha256: the store has no model {'0' * 64} "):
        pull_stored(store, PREFIX, "0" * 64, out=place)
    sha256, _ = push_model(tiny, store, PREFIX)
    place.mkdir()
    (place / "mine.txt").write_text("mine")
    with pytest.raises(InvalidInputError, match=r"^out: .*tiny is not empty; give another folder$"):
        pull_stored(store, PREFIX, sha256, out=place)
    fields = json.loads((tiny.path / MANIFEST_FILE).read_bytes())
    fields["files"]["bart/model.safetensors"]["size"] = 10**18
    huge = json.dumps(fields).encode()
    store.put(f"{PREFIX}models/{digest(huge)}.json", huge)
    with pytest.raises(InvalidInputError, match=r"^out: .* bytes free, but the model needs 1,000,000,\d"):
        pull_stored(store, PREFIX, digest(huge), out=tmp_path / "huge")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny"]
