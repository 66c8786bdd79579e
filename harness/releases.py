"""The code of released versions, from git; it runs beside the present code in tests of upgrades and fault tests.

`tests/data/releases.json` has the commit of each release, since a tag may not travel with a clone.
"""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

from harness.paths import ROOT, SAMPLES

LAST: Final = "0.2.0"
"""The last release: the version that stands beside the present one while a system is updated."""
COMMITS: Final[Mapping[str, str]] = json.loads((SAMPLES / "releases.json").read_text(encoding="utf-8"))


class ReleaseMissingError(Exception):
    """The code of a release is not in this clone; says how to get it."""


@cache
def release_tree(version: str = LAST) -> Path:
    """Returns a folder with the tree of a release, which is made when it is first asked for.

    Raises:
        ReleaseMissingError: the clone lacks its commit.
    """
    commit = COMMITS[version]
    tree = ROOT / "build" / "releases" / f"{version}-{commit[:12]}"
    if tree.is_dir():
        return tree
    packed = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=False)
    if packed.returncode:
        raise ReleaseMissingError(
            f"the commit {commit} of version {version} is not in this clone, which may be shallow; "
            "run git fetch --unshallow"
        )
    tree.parent.mkdir(parents=True, exist_ok=True)
    # Made apart and moved, so that two processes can do it at the same time, and none leaves half of a tree.
    made = Path(tempfile.mkdtemp(prefix=f"{version}-", dir=tree.parent))
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(made, filter="tar")
    try:
        made.rename(tree)
    except OSError:
        shutil.rmtree(made)
        if not tree.is_dir():
            raise
    return tree


def release_environment(version: str = LAST) -> dict[str, str]:
    """Returns the variables with which a process of this Python runs the code of a release."""
    return {"PYTHONPATH": str(release_tree(version))}


def run_release(code: str, arguments: Sequence[str] = (), *, text: str = "", version: str = LAST) -> Any:
    """Runs code with the packages of a release in a child process; returns the JSON that it prints.

    Args:
        code: what to run.
        arguments: its `sys.argv[1:]`.
        text: its standard input.
        version: the release.

    Raises:
        AssertionError: it failed; has what it wrote on standard error.
    """
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *arguments],
        input=text,
        env={**os.environ, **release_environment(version)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
