"""The chart as the programs of `make deploy-check` see it: rendered, and its objects."""

import functools
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

from harness.paths import ROOT

TOOLS: Final = ROOT / "build" / "deploy-tools" / "bin"
CHART: Final = ROOT / "deploy" / "helm" / "smalti"
PRESETS: Final = ("minimal", "cpu", "nvidia", "tpu", "tpu-hosts")
HELMS: Final = ("helm3", "helm4")
KUBERNETES: Final = ("1.30", "1.37")
"""The oldest and the newest version that the chart is for."""

Object = dict[str, Any]


def helm(program: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Runs Helm to its end.

    Args:
        program: "helm3" or "helm4".
        arguments: those of Helm.
    """
    return subprocess.run([TOOLS / program, *arguments], capture_output=True, text=True, check=False)


def arguments(preset: str, settings: tuple[str, ...] = ()) -> list[str]:
    """Returns the arguments for a preset, with values that are set beside it."""
    more = [part for setting in settings for part in ("--set", setting)]
    return ["--values", str(CHART / f"values-{preset}.yaml"), *more]


@functools.lru_cache(maxsize=64)
def rendered(
    preset: str, version: str = "1.37", program: str = "helm4", settings: tuple[str, ...] = ()
) -> str:
    """Returns what Helm renders of a preset; fails if it refuses.

    Args:
        preset: its name.
        version: that of Kubernetes.
        program: "helm3" or "helm4".
        settings: values that are set beside it, such as "web.replicas=1".
    """
    given = arguments(preset, settings)
    done = helm(program, "template", "smalti", str(CHART), "--kube-version", version, *given)
    assert done.returncode == 0, done.stderr
    return done.stdout


def objects(text: str) -> list[Object]:
    """Returns the objects of a render."""
    return [each for each in yaml.safe_load_all(text) if each]


def pods(found: list[Object]) -> Iterator[tuple[str, Object]]:
    """Yields the kind and name of whatever runs pods, and the description of its pods."""
    for each in found:
        name = f"{each['kind']} {each['metadata']['name']}"
        if each["kind"] == "Pod":
            yield name, each["spec"]
        elif each["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield name, each["spec"]["template"]["spec"]
        elif each["kind"] == "LeaderWorkerSet":
            yield name, each["spec"]["leaderWorkerTemplate"]["workerTemplate"]["spec"]


def write(folder: Path, text: str) -> Path:
    """Writes a render into a file, and returns it."""
    path = folder / "rendered.yaml"
    path.write_text(text, encoding="utf-8")
    return path
