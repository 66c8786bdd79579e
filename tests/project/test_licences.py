"""The licences of all dependencies are listed, and known; what builds the project is pinned."""

import tomllib

import pytest

from harness.paths import ROOT
from scripts import licences


def test_page_has_the_licence_of_every_package() -> None:
    assert licences.PAGE.read_text(encoding="utf-8") == licences.page(), "run `make licences`"


def test_unknown_licence_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(licences, "licence_of", lambda name: "Proprietary")
    with pytest.raises(SystemExit, match="look at these"):
        licences.page()


def test_build_requirements_are_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert project["build-system"]["requires"]
    for requirement in project["build-system"]["requires"]:
        assert requirement in pins
