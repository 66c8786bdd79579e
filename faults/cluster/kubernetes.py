"""Calls of kubectl."""

import json
import time
from typing import Any, Final

from faults.deployed.programs import CALL_SECONDS, ProgramError, run
from harness.chart import Object
from harness.waiting import wait_until

INSTANCE: Final = "app.kubernetes.io/instance"
COMPONENT: Final = "app.kubernetes.io/component"


class Namespace:
    """A namespace of the cluster that kubectl's configuration names."""

    def __init__(self, name: str, kubectl: str = "kubectl") -> None:
        """Does not make it.

        Args:
            name: its name.
            kubectl: the program.
        """
        self.name = name
        self._program = kubectl

    def beside(self, name: str) -> "Namespace":
        """Returns another namespace of the cluster."""
        return Namespace(name, self._program)

    def kubectl(self, *arguments: str, text: str | None = None, seconds: float = CALL_SECONDS) -> str:
        """Calls kubectl in the namespace; raises `ProgramError` if it fails."""
        return run([self._program, "--namespace", self.name, *arguments], text=text, seconds=seconds)

    def get(self, kind: str, *, selector: str = "", everywhere: bool = False) -> list[Object]:
        """Returns objects of a kind, or of several with commas between them."""
        arguments = ["get", kind, "--output", "json"]
        arguments += ["--selector", selector] if selector else []
        arguments += ["--all-namespaces"] if everywhere else []
        found: list[Object] = json.loads(self.kubectl(*arguments))["items"]
        return found

    def one(self, kind: str, name: str) -> Object:
        """Returns an object by its name; raises `ProgramError` without one."""
        found: Object = json.loads(self.kubectl("get", kind, name, "--output", "json"))
        return found

    def apply(self, *objects: Object) -> None:
        """Makes objects, or changes them. Their fields are not checked here: kubectl may be newer than the cluster."""
        listed = {"apiVersion": "v1", "kind": "List", "items": objects}
        self.kubectl("apply", "--validate=false", "--filename", "-", text=json.dumps(listed))

    def make(self) -> None:
        """Makes the namespace, unless it is there."""
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.name}})

    def exists(self) -> bool:
        """Returns whether the namespace is there."""
        return bool(
            self.kubectl("get", "namespace", self.name, "--ignore-not-found", "--output", "name").strip()
        )

    def remove(self, seconds: float = 300) -> None:
        """Deletes the namespace with everything in it."""
        self.kubectl(
            "delete",
            "namespace",
            self.name,
            "--ignore-not-found",
            f"--timeout={seconds:.0f}s",
            seconds=seconds,
        )

    def pods(self, component: str = "") -> list[Object]:
        """Returns the pods of a component, or of all, without those that end."""
        selector = f"{COMPONENT}={component}" if component else COMPONENT
        return [each for each in self.get("pods", selector=selector) if not going(each)]

    def wait_until_ready(self, *, seconds: float) -> float:
        """Waits until every Deployment and StatefulSet has what it asks for and no pod ends; returns the seconds."""
        began = time.monotonic()

        def look() -> bool:
            time.sleep(0.5)
            try:
                return all(map(_complete, self.get("deployments,statefulsets"))) and not any(
                    map(going, self.get("pods", selector=COMPONENT))
                )
            except ProgramError:
                return False  # The API server is away for a moment.

        wait_until(look, seconds, problem=f"not everything is ready after {seconds:.0f} s")
        return time.monotonic() - began

    def address(self, service: str) -> str:
        """Returns the address of a Service in the cluster."""
        found: str = self.one("service", service)["spec"]["clusterIP"]
        return found


def going(pod: Object) -> bool:
    """Returns whether a pod ends."""
    return "deletionTimestamp" in pod["metadata"]


def name_of(thing: Object) -> str:
    """Returns the name of an object."""
    found: str = thing["metadata"]["name"]
    return found


def component_of(thing: Object) -> str:
    """Returns the component that an object belongs to."""
    found: str = thing["metadata"]["labels"][COMPONENT]
    return found


def _complete(workload: Object) -> bool:
    wanted, status = workload["spec"]["replicas"], workload.get("status", {})
    counts = (status.get(name, 0) for name in ("readyReplicas", "updatedReplicas", "replicas"))
    seen: Any = status.get("observedGeneration", 0)
    return bool(seen >= workload["metadata"]["generation"]) and all(count == wanted for count in counts)
