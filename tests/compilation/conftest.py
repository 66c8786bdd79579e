"""A folder of compiled programs for each test."""

from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from smalti.compilation import use_compilation_cache


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder, in use while the test runs."""
    folder = tmp_path / "compiled"
    before = jax.config.values["jax_compilation_cache_dir"]
    monkeypatch.setenv("SMALTI_COMPILATION_CACHE", str(folder))
    use_compilation_cache()
    yield folder
    monkeypatch.setenv("SMALTI_COMPILATION_CACHE", "")
    use_compilation_cache()
    jax.config.update("jax_compilation_cache_dir", before)
