"""An object store of each kind."""

from pathlib import Path

import pytest

from harness.objects import store_settings_for
from smalti.storage import ObjectStore, open_store


@pytest.fixture(params=["memory", "local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """An empty store of each kind."""
    if request.param == "s3":
        made = open_store(store_settings_for(request.getfixturevalue("s3").url))
        made.delete(*[info.key for info in made.objects()])
    elif request.param == "local":
        made = open_store(store_settings_for((tmp_path / "a store").as_uri()))
    else:
        made = open_store(store_settings_for("memory:"))
    made.check()
    return made
