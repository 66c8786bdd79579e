"""The locks have everything that an extra brings, on each Python, and pip takes nothing else than what they say."""

import hashlib
import re
import subprocess
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from harness.paths import ROOT
from harness.wheels import write_wheel
from scripts import locks
from scripts.install_torch import PIP
from scripts.lock_files import LOCKS, hashes_of, load_lock, version_of

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]
PYTHONS = ("3.11.0", "3.11.7", "3.12.1", "3.13.0")


def locked(name: str) -> list[Requirement]:
    entries = load_lock(LOCKS / f"{name}.txt").values()
    lines = [line for entry in entries for line in entry.splitlines()]
    return [Requirement(line.removesuffix("\\")) for line in lines if not line[0].isspace()]


def needed(extras: Iterable[str], environment: dict[str, str]) -> Iterator[Requirement]:
    """Yields all requirements that an installation brings, as far as the packages are installed here."""
    waiting = [("smalti", extra) for extra in ("", *extras)]
    seen = set(waiting)
    while waiting:
        name, extra = waiting.pop()
        if name == "torch":
            continue  # Its default build brings CUDA, in versions that it pins by itself.
        for line in requirements(name, extra):
            requirement = Requirement(line)
            if requirement.marker and not requirement.marker.evaluate({**environment, "extra": extra}):
                continue
            other = canonicalize_name(requirement.name)
            if other != "smalti":
                yield requirement
            for each in ("", *requirement.extras):
                if (other, each) not in seen:
                    seen.add((other, each))
                    waiting.append((other, each))


def requirements(name: str, extra: str) -> list[str]:
    if name == "smalti":
        return list(EXTRAS[extra] if extra else PROJECT["project"]["dependencies"])
    try:
        return requires(name) or []
    except PackageNotFoundError:
        return []  # For another Python or platform.


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", locks.EXTRAS)
def test_lock_has_everything_that_its_extras_need(name: str, python: str) -> None:
    # `Marker.evaluate` takes the rest from this Python.
    environment = {"python_full_version": python, "python_version": python.rpartition(".")[0]}
    pins = {
        canonicalize_name(pin.name): pin
        for pin in locked(name)
        if pin.marker is None or pin.marker.evaluate({**environment, "extra": ""})
    }
    for requirement in needed(locks.EXTRAS[name], environment):
        pin = pins.get(canonicalize_name(requirement.name))
        if pin is None and name == locks.ALL and python < locks.PYTHON_OF_ALL:
            continue
        assert pin is not None, f"{requirement} is not in locks/{name}.txt: run `make locks`"
        (version,) = [each.version for each in pin.specifier]
        assert requirement.specifier.contains(version, prereleases=True), f"{pin}: run `make locks`"


def test_every_extra_has_a_lock_or_is_a_part() -> None:
    assert {each for extras in locks.EXTRAS.values() for each in extras} | locks.PARTS == set(EXTRAS)
    devices = {f"jax-{device}" for device in locks.DEVICES}
    assert {path.stem for path in LOCKS.iterdir()} == {
        *locks.EXTRAS,
        locks.BUILD,
        locks.CUDA,
        locks.TOOLS,
        *devices,
    }


def test_every_entry_has_hashes_and_no_address() -> None:
    for path in LOCKS.iterdir():
        for name, entry in load_lock(path).items():
            assert hashes_of(entry), f"{path.name}: {name}"
            assert re.fullmatch(r"[a-z0-9-]+==\S+", entry.split()[0]), entry
        assert "/" not in re.sub(r"#.*", "", path.read_text(encoding="utf-8")), path


def test_a_package_has_one_version_in_all_locks() -> None:
    everything = load_lock(LOCKS / f"{locks.ALL}.txt")
    for path in LOCKS.iterdir():
        for name, entry in load_lock(path).items():
            if name in everything:
                assert version_of(entry) == version_of(everything[name]), f"{path.name}: {name}"


def test_no_lock_of_an_extra_has_cuda() -> None:
    for name in (*locks.EXTRAS, locks.BUILD):
        lock = load_lock(LOCKS / f"{name}.txt")
        assert locks.without_cuda(lock) == lock
    assert {"triton", "nvidia-cublas"} <= load_lock(LOCKS / f"{locks.CUDA}.txt").keys()


@pytest.mark.parametrize("device", locks.DEVICES)
def test_device_of_jax_has_the_versions_of_the_other_locks(device: str) -> None:
    jax, lock = load_lock(LOCKS / "generator.txt"), load_lock(LOCKS / f"jax-{device}.txt")
    cuda = load_lock(LOCKS / f"{locks.CUDA}.txt")
    assert not lock.keys() & jax.keys()
    for name in lock.keys() & cuda.keys():
        assert version_of(lock[name]) == version_of(cuda[name]), name
    brings = "libtpu" if device == "tpu" else f"jax-{device}-plugin"
    assert brings in lock
    if device != "tpu":
        assert version_of(lock[brings]) == version_of(jax["jax"])


def test_build_requirements_are_locked() -> None:
    lock = load_lock(LOCKS / f"{locks.BUILD}.txt")
    for requirement in map(Requirement, PROJECT["build-system"]["requires"]):
        assert str(requirement.specifier) == f"=={version_of(lock[requirement.name])}"


@pytest.mark.process
def test_make_installs_what_has_a_hash_and_the_project(tmp_path: Path) -> None:
    command = ["make", "--dry-run", "--always-make", f"VENV={tmp_path}", f"{tmp_path}/.installed"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    installs = [line.partition(" install ")[2] for line in said.splitlines() if "pip install" in line]
    options = " ".join(PIP[PIP.index("install") + 1 :])
    assert installs == [
        f"{options} --requirement locks/up.txt --requirement locks/build.txt",
        "--no-index --no-deps --no-build-isolation --editable .",
        f"{options} --requirement locks/dev.txt",
    ]


@pytest.mark.process
@pytest.mark.parametrize("right", [True, False])
def test_wrong_hash_is_refused(tmp_path: Path, *, right: bool) -> None:
    wheel = write_wheel(tmp_path, "tile", "1.0")
    digest = hashlib.sha256(wheel.read_bytes() if right else b"another").hexdigest()
    lock = tmp_path / "lock.txt"
    lock.write_text(f"tile==1.0 \\\n    --hash=sha256:{digest}\n")
    done = subprocess.run(
        [*PIP, "--dry-run", "--no-index", "--find-links", tmp_path, "--requirement", lock],
        capture_output=True,
        text=True,
    )
    assert (done.returncode == 0) is right, done.stderr
    assert ("DO NOT MATCH THE HASHES" in done.stderr) is not right
