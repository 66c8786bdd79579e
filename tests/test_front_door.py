"""`import smalti`: its names, and the modules that it must not load."""

import ast
import subprocess
import sys
import tomllib
from typing import TYPE_CHECKING

import pytest

import smalti
from harness.paths import ROOT
from smalti import errors
from smalti.client import RemotePicture
from smalti.pipeline import LocalPicture

# Everything that takes a noticeable time to import, or belongs to an extra.
HEAVY = (
    "PIL",
    "celery",
    "flax",
    "google",
    "grpc",
    "jax",
    "numpy",
    "pydantic",
    "rich",
    "tokenizers",
    "torch",
    "typer",
)


def run(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_is_sorted_and_every_name_resolves() -> None:
    assert smalti.__all__ == sorted(smalti.__all__)
    assert all(getattr(smalti, name) is not None for name in smalti.__all__)
    assert set(smalti.__all__) <= set(dir(smalti))


def test_every_public_error_is_exported() -> None:
    assert set(errors.__all__) <= set(smalti.__all__)
    assert all(getattr(smalti, name) is getattr(errors, name) for name in errors.__all__)


def test_names_are_imported_when_they_are_used() -> None:
    script = f"""
import sys
import smalti
heavy = {{name.partition(".")[0] for name in sys.modules}} & set({HEAVY!r})
assert not heavy, heavy
assert set(smalti.__all__) <= set(dir(smalti))
smalti.SamplingParameters
assert "pydantic" in sys.modules
assert not {{"jax", "torch", "grpc"}} & set(sys.modules)
"""
    run(script)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'smalti' has no attribute 'Mosaic'"):
        _ = smalti.Mosaic  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "missing", "extra"), [("Pipeline", "jax", "local"), ("Client", "grpc", "client")]
)
def test_missing_extra_is_named(name: str, missing: str, extra: str) -> None:
    script = f"""
import sys
sys.modules[{missing!r}] = None
import smalti
try:
    smalti.{name}
except ModuleNotFoundError as error:
    print(error)
"""
    remedy = f"smalti.{name} needs {missing}, which is not installed: pip install 'smalti[{extra}]'\n"
    assert run(script) == remedy


def test_type_checkers_see_every_lazy_name() -> None:
    tree = ast.parse((ROOT / "smalti" / "__init__.py").read_text(encoding="utf-8"))
    imported = {
        alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert set(smalti.__all__) - {"__version__"} <= imported
    assert (ROOT / "smalti" / "py.typed").is_file()


def test_version_is_defined_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["dynamic"] == ["version"]
    assert "version" not in project["project"]
    assert project["tool"]["hatch"]["version"]["path"] == "smalti/__init__.py"
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "version"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == smalti.__version__


if TYPE_CHECKING:
    # Both kinds of pictures satisfy the protocol; mypy checks it here.
    local: type[smalti.Picture] = LocalPicture
    remote: type[smalti.Picture] = RemotePicture
