"""What `make compose-test` does without an engine: the Compose file, and the ports of its account."""

from pathlib import Path

import pytest

from faults.compose.phases import PHASES
from faults.compose.project import Project
from harness.chart import TOOLS

pytestmark = pytest.mark.deploy


def test_gateway_and_store_are_reached_from_this_machine_alone(tmp_path: Path) -> None:
    project = Project(
        tmp_path, name="proof", compose=[str(TOOLS / "docker-compose")], setup=["--broker", "valkey"]
    )
    services = project.services()
    published = {name: each["ports"] for name, each in services.items() if "ports" in each}
    assert {name: port["target"] for name, (port,) in published.items()} == {
        "gateway": 50050,
        "store": 8333,
        "web": 8080,
    }
    assert {port["host_ip"] for (port,) in published.values()} == {"127.0.0.1"}
    assert {"valkey", "database", "encoder", "generator", "decoder", "ranker", "refiner"} < services.keys()
    assert all("healthcheck" in each for each in services.values())
    assert list(PHASES) == ["draw", "kill", "engine", "code"]
