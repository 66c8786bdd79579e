"""The licences of all dependencies are listed, and known."""

import pytest

from scripts import licences


def test_page_has_the_licence_of_every_package() -> None:
    assert licences.PAGE.read_text(encoding="utf-8") == licences.page(), "run `make licences`"


def test_unknown_licence_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(licences, "licence_of", lambda name: "Proprietary")
    with pytest.raises(SystemExit, match="look at these"):
        licences.page()
