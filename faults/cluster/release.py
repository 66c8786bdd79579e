"""The chart as Helm installs, upgrades and takes back."""

import json
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from faults.cluster.kubernetes import Namespace
from faults.deployed.programs import run
from harness.chart import CHART, Object, objects
from harness.paths import ROOT

RELEASE: Final = "smalti"
OLDEST: Final = 30
"""The minor version of the oldest Kubernetes that the chart is for."""
WAIT_SECONDS: Final = 1200


class Release:
    """An installation of the chart, in a cluster that may be older than the chart is for."""

    def __init__(self, namespace: Namespace, helm: str, folder: Path, values: Sequence[Path]) -> None:
        """Installs nothing.

        Args:
            namespace: where.
            helm: the program, a Helm 3.
            folder: for a copy of the chart.
            values: files of values, the last above the others.
        """
        self._namespace = namespace
        self._helm = helm
        self._values = [part for path in values for part in ("--values", str(path))]
        version = json.loads(namespace.kubectl("version", "--output", "json"))["serverVersion"]
        self.version: str = version["gitVersion"]
        self.minor = int(self.version.split(".")[1])
        self._chart = CHART
        self._rewriting: list[str] = []
        if self.minor < OLDEST:
            self._chart = _without_its_limit(folder / "chart")
            script = folder / "rewrite"
            python = f"PYTHONPATH={shlex.quote(str(ROOT))} {shlex.quote(sys.executable)}"
            script.write_text(f"#!/bin/sh\nexec env {python} -m faults.cluster.older {self.minor}\n")
            script.chmod(0o755)
            self._rewriting = ["--post-renderer", str(script)]

    def install(self, *settings: str) -> float:
        """Installs the chart, waits until everything is ready, and returns the seconds; settings are `name=value`."""
        return self._apply("install", settings)

    def upgrade(self, *settings: str) -> float:
        """Upgrades with these settings alone, waits until everything is ready, and returns the seconds."""
        return self._apply("upgrade", settings)

    def rollback(self, revision: int) -> float:
        """Takes back to a revision of the release, waits until everything is ready, and returns the seconds."""
        began = time.monotonic()
        waiting = ("--wait", f"--timeout={WAIT_SECONDS}s")
        self._call("rollback", RELEASE, str(revision), *waiting, seconds=WAIT_SECONDS + 60)
        return time.monotonic() - began

    def test(self) -> str:
        """Runs the chart's test; returns what Helm says of it."""
        return self._call("test", RELEASE, "--timeout=600s", seconds=660)

    def revision(self) -> int:
        """Returns the revision that is installed."""
        found: int = json.loads(self._call("list", "--output", "json"))[0]["revision"]
        return found

    def remove(self) -> None:
        """Uninstalls the chart."""
        self._call("uninstall", RELEASE, "--ignore-not-found", "--wait", seconds=300)

    def rendered(self, *settings: str, values: Sequence[Path] = ()) -> list[Object]:
        """Returns the objects that the chart has with further settings, or with other files of values alone."""
        files = [part for path in values for part in ("--values", str(path))] or self._values
        return objects(
            self._call("template", RELEASE, str(self._chart), *files, *_set(settings), *self._rewriting)
        )

    def _apply(self, verb: str, settings: Sequence[str]) -> float:
        began = time.monotonic()
        what = (verb, RELEASE, str(self._chart), *self._values, *_set(settings), *self._rewriting)
        self._call(*what, "--wait", f"--timeout={WAIT_SECONDS}s", seconds=WAIT_SECONDS + 60)
        return time.monotonic() - began

    def _call(self, *arguments: str, seconds: float = 120) -> str:
        return run([self._helm, "--namespace", self._namespace.name, *arguments], seconds=seconds)


def _set(settings: Sequence[str]) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def _without_its_limit(folder: Path) -> Path:
    """Copies the chart without the version of Kubernetes that it is for, since Helm would refuse; returns the copy."""
    shutil.copytree(CHART, folder)
    described = folder / "Chart.yaml"
    lines = described.read_text(encoding="utf-8").splitlines(keepends=True)
    described.write_text(
        "".join(line for line in lines if not line.startswith("kubeVersion:")), encoding="utf-8"
    )
    return folder
