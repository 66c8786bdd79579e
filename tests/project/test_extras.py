"""Each module can be imported with only the dependencies of its own extra.

`pyproject.toml` and the metadata of the installed packages say what an extra installs; the importing interpreter is
refused everything else.
"""

import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, requires

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from harness.paths import ROOT
from smalti.registry.folder import ModelFolder

pytestmark = pytest.mark.process

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
STAGES = ("encoder", "generator", "decoder", "ranker", "refiner")

IMPORT = """
import importlib, sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {refused!r} else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
for module in {modules!r}:
    importlib.import_module(module)
"""


def needed(name: str, extras: set[str]) -> list[Requirement]:
    """Returns the requirements of a distribution with some of its extras."""
    if name == "smalti":
        lists = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][extra] for extra in extras)]
        return [Requirement(line) for lines in lists for line in lines]
    try:
        found = [Requirement(line) for line in requires(name) or ()]
    except PackageNotFoundError:
        return []  # A requirement for another platform.
    return [
        each
        for each in found
        if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in {"", *extras})
    ]


@cache
def installed_by(extra: str | None) -> frozenset[str]:
    """Returns the distributions that `pip install smalti[extra]` installs."""
    seen: set[tuple[str, str]] = set()
    waiting = [("smalti", extra or "")]
    while waiting:
        name, of = waiting.pop()
        if (name, of) in seen:
            continue
        seen.add((name, of))
        for each in needed(name, {of} if of else set()):
            waiting += [(canonicalize_name(each.name), more) for more in {"", *each.extras}]
    return frozenset(name for name, _ in seen)


def refused(extra: str | None) -> set[str]:
    """Returns the installed modules that this extra does not install."""
    there = installed_by(extra)
    return {
        module
        for module, owners in packages_distributions().items()
        if not any(canonicalize_name(owner) in there for owner in owners)
    }


def run_with(extra: str | None, *modules: str, script: str = "") -> None:
    """Imports modules and runs a script, with only what an extra installs."""
    code = IMPORT.format(refused=refused(extra), modules=modules) + script
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_extras_install_what_they_name() -> None:
    assert {"jax", "jaxlib", "celery", "redis", "grpcio"} <= installed_by("encoder")
    assert not {"torch", "sqlalchemy"} & installed_by("encoder")
    assert {"torch", "jax"} <= refused("gateway")
    assert not {"celery", "minio", "sqlalchemy", "jax", "torch"} & installed_by("web")
    assert {"grpc", "jax", "torch", "celery"} <= refused(None)


@pytest.mark.parametrize("stage", STAGES)
def test_engine_and_service_import_with_their_own_extra(stage: str) -> None:
    engine = "generator.engine" if stage == "generator" else stage
    run_with(stage, f"smalti.engines.{engine}", f"smalti.services.{stage}.service")


@pytest.mark.parametrize("service", ["gateway", "web"])
def test_service_without_an_engine_imports_with_its_own_extra(service: str) -> None:
    run_with(service, f"smalti.services.{service}.service")


def test_generator_encodes_the_empty_prompt_with_its_own_extra(tiny: ModelFolder) -> None:
    script = (
        "from smalti.engines.encoder import unconditional_encoding\n"
        "from smalti.registry.folder import ModelFolder\n"
        "from smalti.registry.spec import ModelSpec\n"
        f"unconditional_encoding(ModelSpec.load(ModelFolder.open({str(tiny.path)!r})))\n"
    )
    run_with("generator", "smalti.engines.encoder", script=script)


def test_model_specification_and_process_need_no_engine() -> None:
    run_with("service", "smalti.registry.spec", "smalti.service.model", "smalti.service.stage")


def test_command_starts_without_any_extra() -> None:
    run_with(None, "smalti.cli")


def test_client_imports_with_its_own_extra() -> None:
    run_with(
        "client", "smalti.client", "smalti.rpc.channel", "smalti.rpc.conversion", "smalti.cli.batches.results"
    )


@pytest.mark.parametrize("extra", ["local", "up", "training"])
def test_command_imports_with_its_own_extra(extra: str) -> None:
    module = {"local": "smalti.cli.drawing.generate", "up": "smalti.up", "training": "smalti.cli.train"}[
        extra
    ]
    run_with(extra, module)
