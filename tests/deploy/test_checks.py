"""What is rendered fits strict schemas and the policies, and dashboards what Grafana knows; all in one process."""

import copy
import json
import re
import subprocess
from typing import Any, Final

import pytest
import yaml

from harness.chart import KUBERNETES, PRESETS, TOOLS, Object, objects, rendered
from harness.paths import DOCS, ROOT

pytestmark = pytest.mark.deploy

MONITORING: Final = ROOT / "deploy" / "monitoring"
POLICIES: Final = ROOT / "deploy" / "policies"
DASHBOARDS: Final = {path.stem: json.loads(path.read_text()) for path in MONITORING.glob("dashboards/*.json")}
RENDERS: Final = [
    *((f"{preset} {version}", preset, version, ()) for preset in PRESETS for version in KUBERNETES),
    ("batches alone", "cpu", KUBERNETES[-1], ("services.generator.batch.shared=false",)),
    (
        "own budget, spread and scaler",
        "cpu",
        KUBERNETES[0],
        (
            "web.pdb.minAvailable=1",
            "web.autoscaling.maxReplicas=4",
            "services.decoder.probes.liveness.failureThreshold=9",
        ),
    ),
    ("long drain", "cpu", KUBERNETES[-1], ("drain.seconds=100", "drain.delaySeconds=7")),
]


def changed(found: list[Object], kind: str, path: str, value: Any) -> list[Object]:
    """Returns a render in which one value of the first object of a kind is another one; None removes it."""
    found = copy.deepcopy(found)
    place: Any = next(each for each in found if each["kind"] == kind)
    *parts, last = (int(part) if part.isdigit() else part for part in path.split("/"))
    for part in parts:
        place = place[part]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return found


POD: Final = "spec/template/spec"
CONTAINER: Final = f"{POD}/containers/0"
WRONG: Final = [
    ("Deployment", f"{POD}/automountServiceAccountToken", True, "automountServiceAccountToken must be false"),
    (
        "LeaderWorkerSet",
        "spec/leaderWorkerTemplate/workerTemplate/spec/automountServiceAccountToken",
        True,
        "LeaderWorkerSet smalti-generator-pictograms: automountServiceAccountToken must be false",
    ),
    ("Deployment", f"{POD}/enableServiceLinks", None, "enableServiceLinks must be false"),
    ("Deployment", f"{POD}/securityContext/runAsUser", 0, "must run as a user that is not root"),
    ("Deployment", f"{CONTAINER}/securityContext/readOnlyRootFilesystem", None, "must have a read-only root"),
    ("Deployment", f"{CONTAINER}/securityContext/capabilities/add", ["ALL"], "must have a read-only root"),
    ("Deployment", f"{CONTAINER}/resources/limits", None, "must have a limit of memory"),
    ("Deployment", f"{CONTAINER}/resources/requests", {"memory": "1Gi"}, "a request of cpu"),
    ("Deployment", f"{POD}/terminationGracePeriodSeconds", 30, "must have preStop, and a grace longer"),
    ("Deployment", f"{CONTAINER}/lifecycle", None, "must have preStop, and a grace longer"),
    (
        "Deployment",
        f"{CONTAINER}/env/0",
        {"name": "A_PASSWORD", "value": "x"},
        "A_PASSWORD must come from a secret",
    ),
    (
        "Deployment",
        f"{CONTAINER}/env/0",
        {"name": "A", "value": "s3://u:p@h/"},
        "A has a password in its value",
    ),
    ("Deployment", "spec/template/metadata/labels", {}, "no NetworkPolicy for both directions selects it"),
    ("ScaledObject", "spec/triggers/0/metadata/protocol", "amqp", "must ask RabbitMQ by HTTP"),
    (
        "ScaledObject",
        "spec/triggers/0/metadata/queueName",
        "^smalti\\.x$",
        "counts no queue of docs/queue.md",
    ),
    ("ScaledObject", "spec/triggers/0/metadata/queueName", "^smalti\\.", "counts dead letters"),
    ("ScaledObject", "spec/triggers", [], "no ScaledObject counts smalti."),
]
"""Changes that the policies must refuse, of the preset for CPUs, and for TPUs where that lacks the kind."""
MISSPELT: Final = [
    ("Deployment", "spec/replica", 1, "replica"),
    ("Service", "spec/ports", "all", "ports"),
    ("ScaledObject", "spec/minReplicas", 1, "spec.minReplicas: unknown"),
    ("ScaledObject", "spec/maxReplicaCount", "many", "maxReplicaCount"),
    ("TriggerAuthentication", "spec/secretTargetRefs", [], "spec.secretTargetRefs: unknown"),
    ("PodMonitor", "spec/podMetricsEndpoints/0/every", "1s", "spec.podMetricsEndpoints.0.every: unknown"),
    ("PrometheusRule", "spec/groups/0/rules/0/expression", "up", "rules.0.expression: unknown"),
    ("Certificate", "spec/dnsNames", "a", "dnsNames"),
    ("HTTPRoute", "spec/rules/0/backends", [], "'backends' was unexpected"),
    ("GRPCRoute", "spec/rules/0/backendRefs/0/port", 0, "less than the minimum"),
    ("HTTPRoute", "kind", "HTTPRouter", "no schema for it here"),
    ("LeaderWorkerSet", "spec/leaderWorkerTemplate/sizes", 4, "'sizes' was unexpected"),
    ("LeaderWorkerSet", "spec/startupPolicy", "Leader", "'Leader' is not one of"),
    (
        "LeaderWorkerSet",
        "spec/leaderWorkerTemplate/workerTemplate/spec/containers/0/port",
        1,
        "workerTemplate: template.spec.containers.0",
    ),
]
"""Changes that a schema must refuse, of the presets for CPUs, and for TPUs where those lack the kind."""


@pytest.fixture(scope="module")
def checked() -> dict[str, Any]:
    """What the program says of all renders, right and wrong ones, and of all dashboards and expressions."""
    page = (DOCS / "queue.md").read_text(encoding="utf-8")
    renders: dict[str, Object] = {
        name: {"version": version, "objects": objects(rendered(preset, version, settings=settings))}
        for name, preset, version, settings in RENDERS
    }
    newest = KUBERNETES[-1]
    cpu, tpu = (renders[f"{preset} {newest}"]["objects"] for preset in ("cpu", "tpu-hosts"))
    for name, wrong in (("wrong", WRONG), ("misspelt", MISSPELT)):
        for number, (kind, path, value, _) in enumerate(wrong):
            base = cpu if kind in {each["kind"] for each in cpu} else tpu
            renders[f"{name} {number}"] = {"version": newest, "objects": changed(base, kind, path, value)}
    rules = yaml.safe_load((MONITORING / "rules.yaml").read_text(encoding="utf-8"))
    expressions = [
        *(rule["expr"] for group in rules["groups"] for rule in group["rules"]),
        *(
            target["expr"]
            for board in DASHBOARDS.values()
            for panel in board["panels"]
            for target in panel["targets"]
        ),
    ]
    assert len(expressions) > 40
    misspelt = changed([{"kind": "board", **DASHBOARDS["system"]}], "board", "panels/0/titel", "x")[0]
    del misspelt["kind"]
    asked = {
        "renders": renders,
        "policies": {path.name: path.read_text(encoding="utf-8") for path in POLICIES.glob("*.rego")},
        "queues": sorted(set(re.findall(r"`(smalti\.[a-z]+\.(?:interactive|batch))`", page))),
        "dashboards": {**DASHBOARDS, "misspelt": misspelt},
        "expressions": [*expressions, "sum(rate(x[5m])"],
    }
    done = subprocess.run(
        [TOOLS / "python", "-m", "scripts.deploy_checks"],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_renders_fit_strict_schemas_and_policies(checked: dict[str, Any]) -> None:
    for name, *_ in RENDERS:
        assert checked["schemas"][name] == [], name
        assert checked["policies"][name] == [], name


def test_policies_refuse_what_they_are_for(checked: dict[str, Any]) -> None:
    for number, (*change, expected) in enumerate(WRONG):
        assert any(expected in each for each in checked["policies"][f"wrong {number}"]), change


def test_schemas_refuse_misspelt_fields_and_wrong_values(checked: dict[str, Any]) -> None:
    for number, (*change, expected) in enumerate(MISSPELT):
        said = checked["schemas"][f"misspelt {number}"]
        assert any(expected in each for each in said), (change, said)


def test_dashboards_have_only_keys_that_grafana_knows(checked: dict[str, Any]) -> None:
    assert {name: keys for name, keys in checked["dashboards"].items() if keys} == {
        "misspelt": ["panels.0.titel"]
    }


def test_every_expression_is_promql(checked: dict[str, Any]) -> None:
    (problem,) = checked["expressions"]
    assert problem.startswith("sum(rate(x[5m]): ")
