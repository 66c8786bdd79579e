"""An installation can hold one service's dependencies: each engine imports with those of its extra alone."""

import subprocess
import sys

import pytest

from smalti.models.folder import ModelFolder

# What belongs to some extra, by the name it is imported by; everything else every installation has.
OPTIONAL = {
    "alembic",
    "emoji",
    "flax",
    "ftfy",
    "grpc",
    "jax",
    "open_clip",
    "psycopg",
    "sqlalchemy",
    "tokenizers",
    "torch",
    "torchvision",
    "unidecode",
}

ENGINES = {
    "encoder": {"emoji", "flax", "ftfy", "jax", "tokenizers", "unidecode"},
    "generator": {"flax", "jax", "tokenizers"},
    "decoder": {"flax", "jax"},
    "ranker": {"ftfy", "open_clip", "torch", "torchvision"},  # open_clip brings ftfy.
}

IMPORT = """
import importlib, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {refused!r}:
            raise ModuleNotFoundError(f"{{name}} belongs to another extra", name=name)

sys.meta_path.insert(0, Refuse())
importlib.import_module({module!r})
"""


@pytest.mark.parametrize("engine", ENGINES)
def test_engine_imports_with_its_own_extra(engine: str) -> None:
    script = IMPORT.format(refused=OPTIONAL - ENGINES[engine], module=f"smalti.engines.{engine}")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("engine", ENGINES)
def test_service_imports_with_its_own_extra(engine: str) -> None:
    script = IMPORT.format(refused=OPTIONAL - ENGINES[engine] - {"grpc"}, module=f"services.{engine}.service")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_gateway_imports_with_its_own_extra() -> None:
    own = {"alembic", "grpc", "psycopg", "sqlalchemy"}
    script = IMPORT.format(refused=OPTIONAL - own, module="services.gateway.service")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_generator_encodes_the_empty_prompt_with_its_own_extra(tiny: ModelFolder) -> None:
    script = IMPORT.format(refused=OPTIONAL - ENGINES["generator"], module="smalti.engines.encoder") + (
        "from smalti.engines.encoder import unconditional_encoding\n"
        "from smalti.models.folder import ModelFolder\n"
        "from smalti.models.sizes import Sizes\n"
        f"unconditional_encoding(Sizes.of(ModelFolder.open({str(tiny.path)!r})))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_sizes_and_process_need_no_engine() -> None:
    for module in ("smalti.models.sizes", "smalti.service.model", "smalti.service.stage"):
        script = IMPORT.format(refused=OPTIONAL - {"grpc"}, module=module)
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_command_starts_without_any_extra() -> None:
    script = IMPORT.format(refused=OPTIONAL, module="smalti.cli")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_services_share_imports_without_any_engine() -> None:
    for module in ("server", "channel", "conversion"):
        script = IMPORT.format(refused=OPTIONAL - {"grpc"}, module=f"smalti.rpc.{module}")
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
