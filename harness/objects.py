"""Object stores in tests, and finding objects by their names, since their keys depend on their content."""

import re
from typing import Final

from pydantic import SecretStr

from smalti.storage import JobKeys, ObjectRef, ObjectStore, StoreSettings, content_key, digest
from smalti.storage.keys import CONTENT_DIGITS

_CONTENT: Final = re.compile(rf"-[0-9a-f]{{{CONTENT_DIGITS}}}(?=\.\w+$)")


def store_settings_for(url: str, timeout: float = 10.0) -> StoreSettings:
    """Returns the settings of a store at this URL."""
    return StoreSettings(url=SecretStr(url), timeout=timeout)


def name_of(key: str) -> str:
    """Returns the name of an object, as `JobKeys` has it: its key without the content."""
    return _CONTENT.sub("", key)


def keys_of(store: ObjectStore, name: str) -> list[str]:
    """Returns the keys of all objects with a name."""
    return [info.key for info in store.objects(name.rpartition(".")[0]) if name_of(info.key) == name]


def key_of(store: ObjectStore, name: str) -> str:
    """Returns the key of the only object with a name."""
    [key] = keys_of(store, name)
    return key


def get_named(store: ObjectStore, name: str) -> bytes:
    """Returns the content of the only object with a name."""
    return store.get(key_of(store, name))


def delete_named(store: ObjectStore, *names: str) -> None:
    """Deletes the objects with these names."""
    store.delete(*(key for name in names for key in keys_of(store, name)))


def put_named(store: ObjectStore, name: str, content: bytes) -> ObjectRef:
    """Writes an object with a name."""
    return store.put(content_key(name, digest(content)), content)


def objects_of(store: ObjectStore, job: str) -> dict[str, bytes]:
    """Returns the objects of a job by their names in its folder, without the records of the stages."""
    folder = JobKeys(job).folder
    found = {info.key.removeprefix(folder): store.get(info.key) for info in store.objects(folder)}
    return {name_of(key): content for key, content in found.items() if not key.startswith("outputs/")}


def ref_of(store: ObjectStore, name: str) -> ObjectRef:
    """Returns a reference to the only object with a name."""
    key = key_of(store, name)
    return ObjectRef(key=key, sha256=digest(store.get(key)))
