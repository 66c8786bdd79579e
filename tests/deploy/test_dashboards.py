"""The dashboards and alerts on a real Prometheus that reads `smalti up`, which draws pictures and a batch."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from harness.paths import ROOT
from harness.processes import started
from harness.prometheus import Prometheus, prometheus
from harness.waiting import wait_until
from smalti import Client
from smalti.errors import SmaltiError
from smalti.testing.model import tiny_model
from smalti.up.ports import read_ports

pytestmark = [pytest.mark.slow, pytest.mark.process, pytest.mark.server]

MONITORING: Final = ROOT / "deploy" / "monitoring"
SCRAPE: Final = yaml.safe_load((MONITORING / "compose.yaml").read_text(encoding="utf-8"))
SECONDS: Final = 300.0
"""Time limit of anything that is waited for, on a busy machine."""


def queries() -> list[str]:
    """Returns the query of every panel, each once."""
    found = {
        target["expr"]: None
        for path in sorted((MONITORING / "dashboards").glob("*.json"))
        for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]
        for target in panel["targets"]
    }
    return list(found)


def work(server: str, folder: Path) -> None:
    """Draws, refuses and cancels jobs, and runs a batch."""
    with Client(server) as client:
        for seed in range(3):
            client.generate("a blue cat", n=2, candidates=3, seed=seed, upscale=2)
        with suppress(SmaltiError):
            client.create("", n=1)
        client.cancel(client.create("a red fox", n=9, candidates=64).id)
    prompts = folder / "prompts.txt"
    prompts.write_text("".join(f"a red cat {number}\n" for number in range(6)), encoding="utf-8")
    out = str(folder / "out")
    command = [sys.executable, "-m", "smalti", "batch", "run", str(prompts), "--out", out, "--n", "1"]
    command += ["--candidates", "2", "--shard", "2", "--server", server]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus with the shipped configuration and rules, which has seen the system at work."""
    folder = tmp_path_factory.mktemp("watched")
    model = tiny_model(folder / "model").path
    (folder / "words.txt").write_text("gun\n", encoding="utf-8")
    ports = read_ports("free")
    command = [sys.executable, "-m", "smalti", "up", "--model", str(model), "--data", str(folder / "data")]
    command += ["--ports", ",".join(f"{name}={port}" for name, port in ports.items())]
    configuration = {
        **SCRAPE,
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(MONITORING / "rules.yaml")],
    }
    targets = [f"127.0.0.1:{port}" for name, port in ports.items() if name.endswith("-metrics")]
    output = folder / "output"
    environment = {**os.environ, "SMALTI_GATEWAY_POLICY_LIST": str(folder / "words.txt")}
    with output.open("wb") as written:
        up = started(command, stdout=written, stderr=subprocess.STDOUT, env=environment)
        with up as process:
            wait_until(
                lambda: "Ctrl-C stops it all" in output.read_text() or process.poll() is not None,
                SECONDS,
                problem="smalti up is not ready",
            )
            assert process.poll() is None, output.read_text()
            with prometheus(folder, configuration, targets) as found:
                server = f"127.0.0.1:{ports['gateway']}"
                # What has labels begins with its first count, and a rate with what is counted after that was read.
                with Client(server) as client:
                    client.generate("a blue cat", n=2, candidates=3, seed=9, upscale=2)
                first = "sum(smalti_job_seconds_count) > 0"
                wait_until(lambda: found.series(first), SECONDS, problem="the first job was not counted")
                work(server, folder)
                # A rate needs two readings of what the work has counted, at a second that is asked about.
                counted = (
                    "sum(smalti_batches_total) > 0 and sum(count_over_time(smalti_batches_total[5m])) > 5"
                )
                wait_until(lambda: found.series(counted), SECONDS, problem="the batch was not counted")
                yield found


def shows(watched: Prometheus, query: str) -> bool:
    """Returns whether a panel has shown a number at any time since the start; on a busy machine it takes minutes."""
    found = watched.series(f"max_over_time(({query})[1h:1s])")
    return any(not math.isnan(float(each["value"][1])) for each in found)


def test_every_panel_shows_what_the_system_does(watched: Prometheus) -> None:
    assert [query for query in queries() if not shows(watched, query)] == []


def test_every_alert_is_evaluated_and_none_fires_in_a_healthy_system(watched: Prometheus) -> None:
    names = [
        rule["alert"]
        for group in yaml.safe_load((MONITORING / "rules.yaml").read_text(encoding="utf-8"))["groups"]
        for rule in group["rules"]
    ]

    def evaluated() -> list[Mapping[str, Any]]:
        rules = watched.rules()
        return rules if all(rule["health"] != "unknown" for rule in rules) else []

    wait_until(evaluated, SECONDS, problem="the rules were not evaluated")
    rules = watched.rules()
    assert [rule["name"] for rule in rules] == names
    assert {rule["name"]: rule["lastError"] for rule in rules if rule["health"] != "ok"} == {}
    assert watched.series('max_over_time(ALERTS{alertstate="firing"}[1h])') == []
