"""What every cluster has and a bare one lacks: names of Services, and disks."""

import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from faults.cluster.kubernetes import Namespace, name_of
from faults.deployed.programs import ProgramError
from harness.chart import Object
from harness.meanwhile import meanwhile
from smalti.errors import InvalidInputError
from smalti.files import write_atomically

LOOK_SECONDS: Final = 1.0
DISKS: Final = 3


def needs_disks(namespace: Namespace) -> bool:
    """Returns whether nothing in the cluster makes disks for claims that name no class."""
    default = "storageclass.kubernetes.io/is-default-class"
    return not any(
        each["metadata"].get("annotations", {}).get(default) == "true"
        for each in namespace.get("storageclasses")
    )


def needs_names(namespace: Namespace) -> bool:
    """Returns whether nothing in the cluster answers for the names of Services."""
    return not any(name_of(each) == "kube-dns" for each in namespace.get("services", everywhere=True))


def disk(name: str, folder: Path, claim: Mapping[str, str] | None = None) -> Object:
    """Returns a disk that is a folder of the node; for any claim, or for one, given by name and namespace."""
    spec: dict[str, Any] = {
        "capacity": {"storage": "20Gi"},
        "accessModes": ["ReadWriteOnce"],
        "persistentVolumeReclaimPolicy": "Retain",
        "hostPath": {"path": str(folder)},
    }
    if claim:
        spec["claimRef"] = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", **claim}
    return {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec}


def disks_of(namespace: Namespace) -> list[str]:
    """Returns the names of the disks of the chart's own broker, store and database."""
    return [f"{namespace.name}-{number}" for number in range(DISKS)]


def make_disks(namespace: Namespace, folder: Path) -> None:
    """Makes empty disks for the chart's own broker, store and database."""
    for name in disks_of(namespace):
        path = folder / name
        path.mkdir(parents=True)
        path.chmod(0o777)  # Each server runs as a user of its own.
        namespace.apply(disk(name, path))


@contextmanager
def names_served(namespace: Namespace, address: str, folder: Path) -> Iterator[None]:
    """Answers for the names of Services at the address that kubelet gives to pods, while the block runs.

    dnsmasq does; what it knows is read from the cluster every second.

    Raises:
        InvalidInputError: dnsmasq is not installed.
    """
    program = shutil.which("dnsmasq")
    if program is None:
        raise InvalidInputError("--dns", "needs dnsmasq; install Debian's dnsmasq-base")
    hosts = folder / "hosts"
    write_atomically(hosts, _hosts(namespace).encode())
    log = (folder / "dnsmasq.log").open("wb")
    command = [
        program,
        "--keep-in-foreground",
        "--no-resolv",
        "--no-hosts",
        f"--addn-hosts={hosts}",
        "--user=root",
    ]
    command += ["--local=/cluster.local/", "--bind-interfaces", f"--listen-address={address}", "--pid-file="]
    serving = subprocess.Popen([*command, "--conf-file=/dev/null"], stdout=log, stderr=log)

    def follow(over: threading.Event) -> None:
        known = ""
        while not over.wait(LOOK_SECONDS):
            try:
                found = _hosts(namespace)
            except ProgramError:
                continue  # The API server is away for a moment.
            if found != known:
                write_atomically(hosts, found.encode())
                serving.send_signal(signal.SIGHUP)
                known = found

    try:
        with meanwhile(follow):
            yield
    finally:
        serving.terminate()
        serving.wait()
        log.close()


def _hosts(namespace: Namespace) -> str:
    """Returns the lines of a file of hosts: the address of each Service, or those of its pods if it has none."""
    lines = []
    objects = namespace.get("services,endpoints", everywhere=True)
    pods = {
        _domain(each): [one["ip"] for part in each.get("subsets", []) for one in part.get("addresses", [])]
        for each in objects
        if each["kind"] == "Endpoints"
    }
    for each in objects:
        if each["kind"] == "Service":
            domain, own = _domain(each), each["spec"].get("clusterIP", "None")
            lines += [f"{ip} {domain}" for ip in ([own] if own != "None" else pods.get(domain, []))]
    return "\n".join(sorted(lines)) + "\n"


def _domain(thing: Object) -> str:
    return f"{name_of(thing)}.{thing['metadata']['namespace']}.svc.cluster.local"
