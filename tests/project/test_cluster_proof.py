"""What `make deploy-test` does without a cluster: rewriting, probing, evaluating triggers, reporting."""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from faults.cluster.autoscaling import wanted_by
from faults.cluster.older import PROBE, rewrite
from faults.cluster.phases import PHASES
from faults.deployed import report
from faults.deployed.trial import PhaseResult, choose
from faults.tally import Tally
from smalti.errors import InvalidInputError


def deployment() -> dict[str, Any]:
    container = {
        "startupProbe": {"grpc": {"port": 50049, "service": "store"}, "periodSeconds": 5},
        "livenessProbe": {"httpGet": {"path": "/metrics", "port": "metrics"}},
        "lifecycle": {"preStop": {"sleep": {"seconds": 5}}},
    }
    template = {"spec": {"containers": [container]}}
    return {
        "kind": "Deployment",
        "apiVersion": "apps/v1",
        "metadata": {"name": "x"},
        "spec": {"template": template},
    }


def budget() -> dict[str, Any]:
    return {"kind": "PodDisruptionBudget", "apiVersion": "policy/v1", "metadata": {"name": "x"}}


def test_old_cluster_gets_what_it_knows() -> None:
    changed, old = rewrite([deployment(), budget()], 20)
    (container,) = changed["spec"]["template"]["spec"]["containers"]
    assert container["startupProbe"].keys() == {"exec", "periodSeconds"}
    assert container["startupProbe"]["exec"]["command"][-2:] == ["50049", "store"]
    assert container["livenessProbe"] == {"httpGet": {"path": "/metrics", "port": "metrics"}}
    assert container["lifecycle"] == {"preStop": {"exec": {"command": ["sleep", "5"]}}}
    assert old["apiVersion"] == "policy/v1beta1"
    assert rewrite([deployment(), budget()], 30) == [deployment(), budget()]


@pytest.fixture
def server() -> Iterator[tuple[int, health.HealthServicer]]:
    servicer = health.HealthServicer()
    running = grpc.server(futures.ThreadPoolExecutor(2))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, running)
    port = running.add_insecure_port("127.0.0.1:0")
    running.start()
    yield port, servicer
    running.stop(None)


@pytest.mark.process
def test_probe_says_whether_a_service_is_healthy(server: tuple[int, health.HealthServicer]) -> None:
    port, servicer = server

    def asked(service: str) -> int:
        command = [sys.executable, "-I", "-S", "-c", PROBE.read_text(encoding="utf-8"), str(port), service]
        return subprocess.run(command, check=False, capture_output=True).returncode

    assert asked("") == 0
    assert asked("store") == 1  # Nobody knows it.
    servicer.set("store", health_pb2.HealthCheckResponse.SERVING)
    assert asked("store") == 0
    servicer.set("store", health_pb2.HealthCheckResponse.NOT_SERVING)
    assert asked("store") == 1


class Figures:
    """Stands for RabbitMQ and Prometheus."""

    def messages(self, pattern: str) -> int:
        return {"encode": 9}[pattern]

    def value(self, query: str) -> float:
        return {"candidates": 33.0}[query]


@pytest.mark.parametrize(("most", "wanted"), [(10, 5), (4, 4)])
def test_trigger_that_asks_for_most_decides_within_the_limits(most: int, wanted: int) -> None:
    triggers = [
        {"type": "rabbitmq", "metadata": {"queueName": "encode", "value": "4"}},
        {"type": "prometheus", "metadata": {"query": "candidates", "threshold": "8"}},
    ]
    spec = {"minReplicaCount": 1, "maxReplicaCount": most, "triggers": triggers}
    figures: Any = Figures()
    assert wanted_by({"spec": spec}, figures, figures) == wanted


def test_phase_holds_only_if_every_job_succeeded(tmp_path: Path) -> None:
    def result(**states: int) -> PhaseResult:
        return PhaseResult(PHASES["pods"], Tally(Counter(states)), (), ("all was ready after 2 s",), 60)

    assert result(succeeded=3).passed
    for state in ("lost", "failed", "refused", "expired"):
        assert not result(succeeded=3, **{state: 1}).passed
    page = tmp_path / "page.md"
    page.write_text("<!-- cluster: written by make deploy-test -->\nlast time\n<!-- end of cluster -->\n")
    lines: list[str] = []
    report.tell([], lines.append, page, "cluster", "make deploy-test", {})
    assert "last time" in page.read_text()  # Nothing was seen.
    results = [result(succeeded=3), result(lost=1)]
    report.tell(results, lines.append, page, "cluster", "make deploy-test", {"when": "today"})
    assert lines == ["pods: all was ready after 2 s", "pods: all was ready after 2 s"]
    text = page.read_text()
    assert "last time" not in text
    assert text.count("| holds |") == text.count("| FAILS |") == 1
    assert "* when: today" in text


def test_phases_are_chosen_by_name_in_their_order() -> None:
    assert [each.name for each in choose(PHASES, "scale, draw")] == ["draw", "scale"]
    assert choose(PHASES, "") == list(PHASES.values())
    with pytest.raises(InvalidInputError, match="--phases: 'drawing' must be one of draw, pods"):
        choose(PHASES, "drawing")
