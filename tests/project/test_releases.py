"""The commits of released versions, which tests of upgrades run; a tag may not travel with a clone."""

import json
import re
import subprocess

from harness.paths import ROOT, SAMPLES

RELEASES = json.loads((SAMPLES / "releases.json").read_text(encoding="utf-8"))


def git(*words: str) -> str:
    """Returns what git prints; nothing if it fails."""
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout


def test_every_release_is_in_the_history_under_its_version() -> None:
    assert RELEASES
    for version, commit in RELEASES.items():
        assert re.fullmatch("[0-9a-f]{40}", commit)
        # A clone of the newest commit alone has no history to look into.
        if git("rev-parse", "--is-shallow-repository").strip() == "false":
            assert f'__version__ = "{version}"' in git("show", f"{commit}:smalti/__init__.py")
