"""The commits of released versions, which tests of upgrades run; a tag may not travel with a clone."""

import json
import subprocess

from harness.paths import ROOT, SAMPLES

RELEASES = json.loads((SAMPLES / "releases.json").read_text(encoding="utf-8"))


def test_every_release_is_in_the_history_under_its_version() -> None:
    for version, commit in RELEASES.items():
        found = subprocess.run(
            ["git", "show", f"{commit}:smalti/__init__.py"], cwd=ROOT, capture_output=True, text=True
        )
        assert found.returncode == 0, f"{commit} of {version} is not here; clone with the whole history"
        assert f'__version__ = "{version}"' in found.stdout
