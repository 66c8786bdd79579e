"""constraints.txt pins everything that an installation brings, on each Python."""

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from harness.paths import ROOT

EXTRAS = ("up", "training", "dev", "docs")
"""What `make` installs."""
PYTHONS = ("3.11.0", "3.11.7", "3.12.1", "3.13.0")


def pins() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if not line.startswith("#")]


def needed(python: str) -> Iterator[str]:
    """Yields the names of all packages that an installation brings, as far as they are installed here."""
    # `Marker.evaluate` takes the rest from this Python.
    environment = {"python_full_version": python, "python_version": python.rpartition(".")[0]}
    waiting = [("smalti", extra) for extra in EXTRAS]
    seen = set(waiting)
    while waiting:
        name, extra = waiting.pop()
        try:
            found = [Requirement(line) for line in requires(name) or ()]
        except PackageNotFoundError:
            continue
        if name == "torch":
            continue  # Its default build brings CUDA, in versions that it pins by itself.
        for requirement in found:
            if requirement.marker and not requirement.marker.evaluate({**environment, "extra": extra}):
                continue
            other = canonicalize_name(requirement.name)
            yield other
            for each in ("", *requirement.extras):
                if (other, each) not in seen:
                    seen.add((other, each))
                    waiting.append((other, each))


@pytest.mark.parametrize("python", PYTHONS)
def test_every_package_is_pinned_on_each_python(python: str) -> None:
    pinned = {
        canonicalize_name(pin.name)
        for pin in pins()
        if pin.marker is None or pin.marker.evaluate({"python_full_version": python})
    }
    assert sorted(set(needed(python)) - pinned - {"smalti"}) == []
