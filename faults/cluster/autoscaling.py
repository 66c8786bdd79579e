"""What KEDA would do: the triggers that the chart renders, evaluated from real figures, and applied by hand."""

import base64
import json
import math
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import yaml

from faults.cluster.kubernetes import Namespace, name_of
from faults.cluster.release import RELEASE
from faults.cluster.system import secret
from faults.cluster.trial import ClusterTrial
from faults.deployed.load import asked
from faults.deployed.trial import READY_SECONDS, phase
from harness.chart import Object
from harness.servers import free_port
from harness.waiting import wait_until

SETTINGS: Final = (
    "autoscaling.kind=keda",
    "autoscaling.rabbitmqSecret=keda",
    "autoscaling.prometheus=http://prometheus:9090",
    "services.generator.autoscaling.maxReplicas=3",
    *(f"services.{stage}.autoscaling.maxReplicas=2" for stage in ("encoder", "decoder", "ranker", "refiner")),
)
"""The chart with KEDA, but no more pods than a small node takes."""
BURST: Final = 36
"""Jobs that are submitted at once."""
HTTP_API_PORT, METRICS_PORT = 15672, 9150
SCRAPE: Final = "2s"


@phase(
    "autoscaling",
    "a burst of jobs; KEDA's triggers, as rendered, evaluated from queues and metrics, and applied by `kubectl scale`",
    "the generator grows while work waits, and shrinks when it is done; no job fails",
)
def autoscale(trial: ClusterTrial) -> None:
    """Follows what the triggers ask for until nothing waits."""
    scaled = [each for each in trial.release.rendered(*SETTINGS) if each["kind"] == "ScaledObject"]
    generator = f"{RELEASE}-generator-{trial.system.model.name}"
    asked_for: list[Mapping[str, int]] = []
    with watching(trial.namespace, trial.folder) as prometheus:
        queues = Queues(trial.namespace)
        with trial.system.client(attempts=4, retry_seconds=60) as client:
            for number in range(BURST):
                trial.account.submit(**asked(number), client=client)
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            wanted = {name_of(each): wanted_by(each, queues, prometheus) for each in scaled}
            if not asked_for or wanted != asked_for[-1]:
                asked_for.append(wanted)
                for name, replicas in wanted.items():
                    trial.namespace.kubectl("scale", f"--replicas={replicas}", f"deployment/{name}")
            if len(asked_for) > 1 and all(
                wanted[name_of(each)] == each["spec"]["minReplicaCount"] for each in scaled
            ):
                break
            time.sleep(5)
    most = {name: max(each[name] for each in asked_for) for name in asked_for[0]}
    trial.notes.append(
        f"most that was asked for: {', '.join(f'{name} {count}' for name, count in most.items())}"
    )
    trial.expect(most[generator] > 1, "the triggers did not ask for more generators")
    trial.expect(asked_for[-1][generator] == 1, "the triggers did not ask for one generator in the end")
    trial.namespace.wait_until_ready(seconds=READY_SECONDS)
    trial.account.settle(seconds=READY_SECONDS)


class Queues:
    """The lengths of RabbitMQ's queues, as KEDA reads them by its HTTP API."""

    def __init__(self, namespace: Namespace) -> None:
        """Finds the broker's pod and password."""
        (pod,) = namespace.pods("broker")
        self._url = f"http://{pod['status']['podIP']}:{HTTP_API_PORT}/api/queues/%2F"
        login = f"smalti:{secret(namespace, f'{RELEASE}-broker')['password']}"
        self._headers = {"authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}

    def messages(self, pattern: str) -> int:
        """Returns the messages, those in work included, of all queues that match a pattern."""
        asked_for = {"page": 1, "page_size": 100, "pagination": "true", "use_regex": "true", "name": pattern}
        url = f"{self._url}?{urllib.parse.urlencode(asked_for)}"
        with urllib.request.urlopen(urllib.request.Request(url, headers=self._headers), timeout=30) as answer:
            return sum(int(queue.get("messages", 0)) for queue in json.load(answer)["items"])


class Prometheus:
    """A Prometheus that reads the pods."""

    def __init__(self, url: str) -> None:
        """Takes its address."""
        self._url = url

    def value(self, query: str) -> float:
        """Returns the sum of what a query finds; 0 if it finds nothing."""
        url = f"{self._url}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            found = json.load(answer)["data"]["result"]
        return sum(float(each["value"][1]) for each in found)


def wanted_by(scaled: Object, queues: Queues, prometheus: Prometheus) -> int:
    """Returns how many pods a ScaledObject asks for: the most of its triggers, within its limits."""
    spec = scaled["spec"]
    most = max(_pods(trigger, queues, prometheus) for trigger in spec["triggers"])
    return max(spec["minReplicaCount"], min(most, spec["maxReplicaCount"]))


def _pods(trigger: Mapping[str, Any], queues: Queues, prometheus: Prometheus) -> int:
    told = trigger["metadata"]
    if trigger["type"] == "rabbitmq":
        return math.ceil(queues.messages(told["queueName"]) / float(told["value"]))
    return math.ceil(prometheus.value(told["query"]) / float(told["threshold"]))


@contextmanager
def watching(namespace: Namespace, folder: Path) -> Iterator[Prometheus]:
    """Runs a Prometheus that reads the metrics of the gateways while the block runs."""
    port = free_port()
    targets = [f"{pod['status']['podIP']}:{METRICS_PORT}" for pod in namespace.pods("gateway")]
    jobs: Sequence[Object] = [{"job_name": "smalti", "static_configs": [{"targets": targets}]}]
    configuration = folder / "prometheus.yaml"
    configuration.write_text(yaml.safe_dump({"global": {"scrape_interval": SCRAPE}, "scrape_configs": jobs}))
    command = ["prometheus", f"--config.file={configuration}", f"--storage.tsdb.path={folder / 'prometheus'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
    with (
        (folder / "prometheus.log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as running,
    ):
        try:
            prometheus = Prometheus(f"http://127.0.0.1:{port}")

            def reads() -> bool:
                try:
                    return prometheus.value("sum(up)") == len(targets)
                except OSError:
                    return False

            wait_until(reads, 60, problem="Prometheus does not read the gateways")
            yield prometheus
        finally:
            running.terminate()
