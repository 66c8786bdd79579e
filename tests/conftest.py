"""What the tests share: shapes checked at run time, the golden values, the tiny model."""

import os
import tempfile
from pathlib import Path

# Compiled programs are shared by all processes of a test run, and by the next run: compiling takes most of the time.
os.environ.setdefault("SMALTI_COMPILATION_CACHE", str(Path(tempfile.gettempdir()) / "smalti-tests-compiled"))

import pytest
from jaxtyping import install_import_hook

# Before anything of these is imported: every shape in a signature is then checked on every call.
SHAPED = [
    "smalti.engines",
    *(f"smalti.models.{name}" for name in ("bart", "clip", "layers", "text", "vqgan")),
]
install_import_hook(SHAPED, "beartype.beartype")

from smalti.engines.compilation import use_compilation_cache  # noqa: E402
from smalti.models.folder import ModelFolder  # noqa: E402
from smalti.pipeline import Pipeline  # noqa: E402
from smalti.testing.model import tiny_model  # noqa: E402
from smalti.testing.words import SMALL_WORLD  # noqa: E402

use_compilation_cache()

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of reference values."""
    return GOLDEN


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """The tiny model's folder; not to be changed."""
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny", seed=1)


@pytest.fixture(scope="session")
def worded(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """The folder of a tiny model that knows the words of a small world; not to be changed."""
    return tiny_model(tmp_path_factory.mktemp("models") / "worded", seed=1, words=SMALL_WORLD)


@pytest.fixture(scope="session")
def pipeline(tiny: ModelFolder) -> Pipeline:
    """The tiny model, loaded."""
    return Pipeline.load(tiny.path)
