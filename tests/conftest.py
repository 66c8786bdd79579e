"""What the tests share: shapes checked at run time, the golden values, the tiny model."""

from pathlib import Path

import pytest
from jaxtyping import install_import_hook

# Before anything of these is imported: every shape in a signature is then checked on every call.
install_import_hook(["smalti.models", "smalti.engines"], "beartype.beartype")

from smalti.models.folder import ModelFolder  # noqa: E402
from smalti.pipeline import Pipeline  # noqa: E402
from smalti.testing.model import tiny_model  # noqa: E402

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of reference values."""
    return GOLDEN


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """The tiny model's folder; not to be changed."""
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def pipeline(tiny: ModelFolder) -> Pipeline:
    """The tiny model, loaded."""
    return Pipeline.load(tiny.path)
