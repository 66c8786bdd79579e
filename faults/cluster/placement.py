"""Where the cluster's own scheduler puts the pods of the presets for accelerators: on nodes that are only described."""

import functools
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Final

from faults.cluster.kubernetes import Namespace, component_of, name_of
from faults.cluster.trial import ClusterTrial
from faults.deployed.trial import phase
from harness.chart import CHART, Object
from harness.waiting import wait_until

PLACED_SECONDS: Final = 30.0
GONE_SECONDS: Final = 120.0
KINDS: Final = ("ServiceAccount", "PriorityClass", "Deployment")
"""What scheduling needs of a render."""

GPU: Final = "nvidia.com/gpu"
TPU: Final = "google.com/tpu"
MIG: Final = "nvidia.com/mig-1g.10gb"


def _tpu_node(kind: str) -> Mapping[str, str]:
    return {"cloud.google.com/gke-tpu-accelerator": kind, "cloud.google.com/gke-tpu-topology": "1x1"}


NODES: Final[Mapping[str, tuple[Mapping[str, str], Mapping[str, str], str]]] = {
    "cpu": ({}, {}, ""),
    "h100": ({"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}, {GPU: "1"}, GPU),
    "mig": ({}, {MIG: "7"}, GPU),
    "l4": ({"nvidia.com/gpu.product": "NVIDIA-L4"}, {GPU: "1"}, GPU),
    "v6e": (_tpu_node("tpu-v6e-slice"), {TPU: "1"}, TPU),
    "v5e": (_tpu_node("tpu-v5-lite-podslice"), {TPU: "1"}, TPU),
}
"""Labels, accelerators, and the key of the taint of each node."""

EXPECTED: Final[Mapping[str, Mapping[str, list[str]]]] = {
    "nvidia": {
        "encoder": ["cpu", "cpu"],
        "generator": ["h100", ""],
        "decoder": ["mig", "mig"],
        "ranker": ["l4"],
        "refiner": ["mig"],
        "gateway": ["cpu", "cpu"],
        "web": ["cpu", "cpu"],
    },
    "tpu": {
        "encoder": ["cpu", "cpu"],
        "generator": ["v6e", ""],
        "decoder": ["v5e"],
        "ranker": ["cpu", "cpu"],
        "refiner": ["cpu"],
        "gateway": ["cpu", "cpu"],
        "web": ["cpu", "cpu"],
    },
}
"""The nodes of the pods of each component; "" for one that waits, since the second generator finds no accelerator."""


@phase(
    "placement",
    "the presets for GPUs and TPUs, on nodes that are only described, placed by the cluster's scheduler",
    "each pod is on a node with its accelerator, and those that need none are on none of these",
)
def place(trial: ClusterTrial) -> None:
    """Lets the scheduler place both presets."""
    for preset, expected in EXPECTED.items():
        with _nodes(trial.namespace), _placing(trial, preset) as namespace:
            try:
                wait_until(functools.partial(_are_placed, namespace, expected), PLACED_SECONDS)
            except AssertionError:
                trial.problems.append(f"{preset}: pods are on {_placed(namespace)}")
            else:
                places = (f"{kind} on {_named(nodes)}" for kind, nodes in expected.items())
                trial.notes.append(f"{preset}: {', '.join(places)}")


def _are_placed(namespace: Namespace, expected: Mapping[str, list[str]]) -> bool:
    time.sleep(0.5)
    return _placed(namespace) == expected


def _are_gone(namespace: Namespace) -> bool:
    """Removes pods, since nobody on these nodes would say that one has ended; returns whether none will come again."""
    namespace.kubectl("delete", "pods", "--all", "--force", "--grace-period=0", "--wait=false")
    time.sleep(0.5)
    return not namespace.get("deployments,replicasets,pods")


def _placed(namespace: Namespace) -> Mapping[str, list[str]]:
    """Returns the nodes of the pods of each component; "" for one that waits."""
    found: dict[str, list[str]] = {}
    for pod in namespace.pods():
        node = pod["spec"].get("nodeName", "").removeprefix("smalti-")
        found.setdefault(component_of(pod), []).append(node)
    return {kind: sorted(nodes, reverse=True) for kind, nodes in found.items()}


def _named(nodes: list[str]) -> str:
    return " and ".join(node or "none, waiting" for node in nodes)


@contextmanager
def _placing(trial: ClusterTrial, preset: str) -> Iterator[Namespace]:
    """Applies the pods of a preset in a namespace of their own while the block runs."""
    namespace = trial.namespace.beside(f"{trial.namespace.name}-{preset}")
    namespace.make()
    values = CHART / f"values-{preset}.yaml"
    rendered = trial.release.rendered("autoscaling.kind=none", values=[values])
    objects = [each for each in rendered if each["kind"] in KINDS]
    for each in objects:
        if "namespace" in each["metadata"]:
            each["metadata"]["namespace"] = namespace.name
    try:
        namespace.apply(*objects)
        yield namespace
    finally:
        # Until what makes pods has gone, more of them may come.
        namespace.kubectl("delete", "deployments", "--all", "--cascade=foreground", "--wait=false")
        wait_until(functools.partial(_are_gone, namespace), GONE_SECONDS, problem="pods do not go")
        for each in objects:
            if each["kind"] == "PriorityClass":
                namespace.kubectl("delete", "priorityclass", name_of(each), "--ignore-not-found")
        namespace.remove()


@contextmanager
def _nodes(namespace: Namespace) -> Iterator[None]:
    """Describes the nodes while the block runs; the real ones take no pods meanwhile."""
    real = [name_of(each) for each in namespace.get("nodes") if not each["spec"].get("unschedulable")]
    for node in real:
        namespace.kubectl("cordon", node)
    try:
        namespace.apply(*map(_node, NODES))
        for name in NODES:
            described = namespace.one("node", f"smalti-{name}")
            described["status"] = _status(NODES[name][1])
            # kubelet alone says what a node has, by this path; kubectl has no command for it.
            path = f"/api/v1/nodes/smalti-{name}/status"
            namespace.kubectl("replace", "--raw", path, "--filename", "-", text=json.dumps(described))
        yield
    finally:
        for name in NODES:
            namespace.kubectl("delete", "node", f"smalti-{name}", "--ignore-not-found", "--wait=false")
        for node in real:
            namespace.kubectl("uncordon", node)


def _node(name: str) -> Object:
    labels, _, taint = NODES[name]
    full = f"smalti-{name}"
    spec = {"taints": [{"key": taint, "value": "present", "effect": "NoSchedule"}]} if taint else {}
    metadata = {"name": full, "labels": {"kubernetes.io/hostname": full, **labels}}
    return {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": spec}


def _status(accelerators: Mapping[str, str]) -> Object:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    has = {"cpu": "64", "memory": "512Gi", "pods": "110", "ephemeral-storage": "1Ti", **accelerators}
    ready = {"type": "Ready", "status": "True", "reason": "Described", "message": "not real"}
    times = {"lastHeartbeatTime": now, "lastTransitionTime": now}
    return {"capacity": has, "allocatable": has, "conditions": [{**ready, **times}]}
