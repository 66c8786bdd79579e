"""A folder of compiled programs for each test."""

from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from smalti.compilation import use_compilation_cache


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder, in use while the test runs."""
    folder = tmp_path / "compiled"
    before = jax.config.values["jax_compilation_cache_dir"]
    compilation_cache.reset_cache()  # JAX opens its own cache once, and other tests have another one.
    monkeypatch.setenv("SMALTI_COMPILATION_CACHE", str(folder))
    use_compilation_cache()
    yield folder
    monkeypatch.setenv("SMALTI_COMPILATION_CACHE", "")
    use_compilation_cache()
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()
