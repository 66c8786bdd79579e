"""The alerts and dashboards: they name metrics that there are, and every alert has a page and a test."""

import json
import re
from typing import Any

import yaml

from harness.paths import DOCS, ROOT

MONITORING = ROOT / "deploy" / "monitoring"
RUNBOOKS = DOCS / "runbooks"
OF_THE_CLIENT = {"process_start_time_seconds", "process_resident_memory_bytes"}
"""What the library of Prometheus adds."""


def alerts() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((MONITORING / "rules.yaml").read_text(encoding="utf-8"))["groups"]
    return list(group["rules"])


def expressions() -> list[str]:
    """Returns those of the alerts and of every panel."""
    found = [alert["expr"] for alert in alerts()]
    for path in sorted((MONITORING / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]:
            found += [target["expr"] for target in panel["targets"]]
    return found


def test_every_metric_is_documented_and_used_as_what_it_is() -> None:
    page = (DOCS / "metrics.md").read_text(encoding="utf-8")
    kinds = dict(re.findall(r"^\| `(smalti_[a-z_]+)` \| (\w+)", page, re.MULTILINE))
    known = OF_THE_CLIENT | {name for name, kind in kinds.items() if kind != "histogram"}
    known |= {
        f"{name}_{part}"
        for name, kind in kinds.items()
        if kind == "histogram"
        for part in ("bucket", "sum", "count")
    }
    used = {name for each in expressions() for name in re.findall(r"\b(?:smalti|process)_[a-z_]+", each)}
    assert used - known == set()


def test_every_alert_has_a_page_with_its_sections_and_every_page_an_alert() -> None:
    names = [alert["alert"] for alert in alerts()]
    assert {path.stem for path in RUNBOOKS.glob("Smalti*.md")} == set(names)
    for alert in alerts():
        assert alert["annotations"]["runbook"] == f"docs/runbooks/{alert['alert']}.md"
        assert alert["labels"]["severity"] in ("warning", "critical")
        lines = (RUNBOOKS / f"{alert['alert']}.md").read_text(encoding="utf-8").splitlines()
        headings = [line for line in lines if line.startswith("#")]
        assert headings == [
            *(f"# {alert['alert']}", "## What it means", "## What to look at", "## What to do")
        ]


def test_every_alert_has_a_test_that_fires_and_one_that_does_not() -> None:
    tests = yaml.safe_load((MONITORING / "rules_test.yaml").read_text(encoding="utf-8"))["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    for name in (alert["alert"] for alert in alerts()):
        fires = {bool(case["exp_alerts"]) for case in cases if case["alertname"] == name}
        assert fires == {True, False}, name
