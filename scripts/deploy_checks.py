"""Checks renders of the chart, dashboards and PromQL in one process, with the packages of `make deploy-check`.

Reads JSON from standard input and writes a JSON object, whose lists are empty where nothing is wrong:

* `schemas`: per name of a render, what does not fit the strict schemas of Kubernetes, or of the custom kinds
* `policies`: per name of a render, what the Rego policies refuse
* `dashboards`: per name of a dashboard, keys that Grafana does not know
* `expressions`: PromQL that cannot be parsed
"""

import functools
import json
import sys
from collections.abc import Iterator
from typing import Any, Final

import kubernetes_validate
import promql_parser
import regorus
from cloudcoil.models.cert_manager.v1 import Certificate
from cloudcoil.models.keda.v1alpha1 import ScaledObject, TriggerAuthentication
from cloudcoil.models.prometheus_operator.v1 import PodMonitor, PrometheusRule
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
from jsonschema import Draft202012Validator
from pydantic import ValidationError

Fields = dict[str, Any]

CUSTOM: Final = {
    each.__name__: each
    for each in (Certificate, PodMonitor, PrometheusRule, ScaledObject, TriggerAuthentication)
}
"""Models made from the definitions of their projects."""


def _closed(required: list[str], **properties: Any) -> Fields:
    return {"type": "object", "additionalProperties": False, "required": required, "properties": properties}


def _group() -> Fields:
    """Returns what the chart may write of a LeaderWorkerSet, a part of its own definition; its pods are Kubernetes'."""
    count = {"type": "integer", "minimum": 0}
    template = _closed(["metadata", "spec"], metadata={"type": "object"}, spec={"type": "object"})
    restarts = ["Default", "RecreateGroupOnPodRestart", "RecreateGroupAfterStart", "None"]
    spec = _closed(
        ["leaderWorkerTemplate"],
        replicas=count,
        startupPolicy={"enum": ["LeaderCreated", "LeaderReady"]},
        networkConfig=_closed(["subdomainPolicy"], subdomainPolicy={"enum": ["Shared", "UniquePerReplica"]}),
        rolloutStrategy=_closed(
            ["type"],
            type={"const": "RollingUpdate"},
            rollingUpdateConfiguration=_closed([], partition=count, maxUnavailable=count, maxSurge=count),
        ),
        leaderWorkerTemplate=_closed(
            ["workerTemplate"],
            size={"type": "integer", "minimum": 1},
            restartPolicy={"enum": restarts},
            leaderTemplate=template,
            workerTemplate=template,
        ),
    )
    return _closed(
        ["apiVersion", "kind", "metadata", "spec"],
        apiVersion={"const": "leaderworkerset.x-k8s.io/v1"},
        kind={"const": "LeaderWorkerSet"},
        metadata={"type": "object"},
        spec=spec,
    )


def _route(backend: str) -> Fields:
    """Returns what the chart may write of a route, a part of the Gateway API's own definition."""
    name = {"type": "string", "maxLength": 253, "pattern": r"^(\*\.)?[a-z0-9]([-.a-z0-9]*[a-z0-9])?$"}
    port = {"type": "integer", "minimum": 1, "maximum": 65535}
    parent = _closed(
        ["name"],
        **{key: {"type": "string"} for key in ("group", "kind", "namespace", "name", "sectionName")},
        port=port,
    )
    backends = {"type": "array", "maxItems": 16, "items": _closed(["name"], name=name, port=port)}
    rule = _closed([], backendRefs=backends)
    spec = _closed(
        ["parentRefs", "rules"],
        parentRefs={"type": "array", "maxItems": 32, "items": parent},
        hostnames={"type": "array", "maxItems": 16, "items": name},
        rules={"type": "array", "minItems": 1, "maxItems": 16, "items": rule},
    )
    return _closed(
        ["apiVersion", "kind", "metadata", "spec"],
        apiVersion={"const": "gateway.networking.k8s.io/v1"},
        kind={"const": backend},
        metadata={"type": "object"},
        spec=spec,
    )


WRITTEN: Final = {
    **{kind: Draft202012Validator(_route(kind)) for kind in ("HTTPRoute", "GRPCRoute")},
    "LeaderWorkerSet": Draft202012Validator(_group()),
}
"""Kinds of which no package has a model that finds unknown fields."""


def main() -> None:
    """Checks what standard input asks for."""
    asked = json.load(sys.stdin)
    # The library reads the definitions again for every object, which takes most of the time.
    kubernetes_validate.utils.schema_contents = functools.cache(kubernetes_validate.utils.schema_contents)
    answer = {
        "schemas": {
            name: list(schema_problems(render["objects"], render["version"]))
            for name, render in asked["renders"].items()
        },
        "policies": policy_problems(asked),
        "dashboards": {name: list(lost_keys(each)) for name, each in asked["dashboards"].items()},
        "expressions": list(expression_problems(asked["expressions"])),
    }
    json.dump(answer, sys.stdout)


def schema_problems(objects: list[Fields], version: str) -> Iterator[str]:
    """Yields what does not fit a schema, one line each."""
    for each in objects:
        name = f"{each.get('kind')} {each.get('metadata', {}).get('name')}"
        for problem in _problems_of(each, version):
            yield f"{name}: {problem}"


def _problems_of(each: Fields, version: str) -> Iterator[str]:
    kind = each.get("kind", "")
    if kind in WRITTEN:
        yield from (error.message for error in WRITTEN[kind].iter_errors(each))
        templates = each["spec"].get("leaderWorkerTemplate", {})
        for key in ("leaderTemplate", "workerTemplate"):
            if key in templates:
                pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {}, "template": templates[key]}
                yield from (f"{key}: {problem}" for problem in _problems_of(pod, version))
    elif kind in CUSTOM:
        try:
            # A key that the model does not know is not there any more when it is written again.
            known = (
                CUSTOM[kind].model_validate(each).model_dump(by_alias=True, exclude_unset=True, mode="json")
            )
        except ValidationError as error:
            yield "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
            return
        yield from (f"{path}: unknown" for path in _lost(each, known))
    else:
        try:
            kubernetes_validate.validate(each, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"{'.'.join(map(str, error.path))}: {error.message}"
        except kubernetes_validate.SchemaNotFoundError:
            yield f"there is no {each.get('apiVersion')} in Kubernetes {version}, and no schema for it here"


def policy_problems(asked: Fields) -> dict[str, list[str]]:
    """Returns what the policies refuse of each render."""
    engine = regorus.Engine()
    for name, text in asked["policies"].items():
        engine.add_policy(name, text)
    found = {}
    for name, render in asked["renders"].items():
        engine.set_input_json(json.dumps({"objects": render["objects"], "queues": asked["queues"]}))
        found[name] = sorted(json.loads(engine.eval_rule_as_json("data.smalti.deny")))
    return found


def lost_keys(dashboard: Fields) -> Iterator[str]:
    """Yields the keys of a dashboard that Grafana does not know."""
    return _lost(dashboard, json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard))))


def expression_problems(expressions: list[str]) -> Iterator[str]:
    """Yields the expressions that are not PromQL, each with the reason."""
    for each in expressions:
        try:
            promql_parser.parse(each)
        except ValueError as error:
            yield f"{each}: {error}"


def _lost(before: Any, after: Any, path: str = "") -> Iterator[str]:
    """Yields the paths of the keys that are missing afterwards."""
    if isinstance(before, dict):
        for key, value in before.items():
            inner = f"{path}.{key}" if path else key
            if not isinstance(after, dict) or key not in after:
                yield inner
            else:
                yield from _lost(value, after[key], inner)
    elif isinstance(before, list):
        for index, (one, other) in enumerate(zip(before, after, strict=False)):
            yield from _lost(one, other, f"{path}.{index}")


if __name__ == "__main__":
    main()
