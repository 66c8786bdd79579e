"""Rewrites what the chart renders for a cluster that is older than the chart is for; Helm calls it.

A cluster that can be built without downloads is Kubernetes 1.20. What it lacks and the chart uses is put in words that
it knows, with the same meaning. Everything else stays as the chart has it.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from harness.chart import Object, objects, pods

VERSIONS: Final[Mapping[tuple[str, str], tuple[int, str]]] = {
    ("PodDisruptionBudget", "policy/v1"): (21, "policy/v1beta1"),
    ("HorizontalPodAutoscaler", "autoscaling/v2"): (23, "autoscaling/v2beta2"),
}
"""By an object's kind and version in the chart: the first minor version that knows it, and the version before."""
GRPC_PROBES: Final = 24
SLEEP: Final = 30
"""The first minor versions of Kubernetes with probes by gRPC, and with a sleep before the end of a container."""
PROBE: Final = Path(__file__).with_name("grpc_probe.py")
PROBES: Final = ("startupProbe", "readinessProbe", "livenessProbe")


def rewrite(found: list[Object], minor: int) -> list[Object]:
    """Changes objects so that Kubernetes 1.`minor` knows them, and returns them."""
    for each in found:
        since, version = VERSIONS.get((each["kind"], each["apiVersion"]), (0, ""))
        if minor < since:
            each["apiVersion"] = version
    for _, spec in pods(found):
        for container in spec["containers"]:
            for kind in PROBES:
                if minor < GRPC_PROBES and (grpc := container.get(kind, {}).pop("grpc", None)):
                    container[kind]["exec"] = {"command": _probe(grpc)}
            stop = container.get("lifecycle", {}).get("preStop", {})
            if minor < SLEEP and (sleep := stop.pop("sleep", None)):
                stop["exec"] = {"command": ["sleep", str(sleep["seconds"])]}
    return found


def _probe(grpc: Mapping[str, Any]) -> list[str]:
    source = PROBE.read_text(encoding="utf-8")
    return ["python", "-I", "-S", "-c", source, str(grpc["port"]), grpc.get("service", "")]


if __name__ == "__main__":
    yaml.safe_dump_all(rewrite(objects(sys.stdin.read()), int(sys.argv[1])), sys.stdout)
