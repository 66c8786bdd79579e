"""Secrets that are named must be in the cluster before anything is applied; the cluster is a few answers of its API."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import pytest

from harness.chart import CHART, HELMS, Object, arguments, helm

pytestmark = pytest.mark.deploy

SPACE: Final = "/api/v1/namespaces/default"
KINDS: Final = [
    {"name": name, "singularName": name[:-1], "namespaced": True, "kind": kind, "verbs": ["get", "list"]}
    for name, kind in (("secrets", "Secret"), ("serviceaccounts", "ServiceAccount"))
]
KEYS: Final = {
    "smalti-broker": ("SMALTI_BROKER_URL",),
    "smalti-store": ("SMALTI_STORE_ACCESS_KEY", "SMALTI_STORE_SECRET_KEY"),
    "smalti-database": ("SMALTI_GATEWAY_DATABASE",),
    "smalti-web": ("SMALTI_WEB_SIGNING_KEY", "SMALTI_WEB_KEY"),
    "smalti-rabbitmq-api": ("host",),
}
"""The secrets of the preset for CPUs."""


def of(kind: str, name: str, **more: Any) -> Object:
    return {
        "apiVersion": "v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": "default"},
        **more,
    }


class Cluster:
    """What the API of a cluster answers, by path; changed by the tests."""

    def __init__(self) -> None:
        self.answers: dict[str, Object] = {
            "/version": {"major": "1", "minor": "33", "gitVersion": "v1.33.0"},
            "/api": {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []},
            "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": []},
            "/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": KINDS},
            f"{SPACE}/serviceaccounts/default": of("ServiceAccount", "default"),
        }
        for name, keys in KEYS.items():
            data = {key: base64.b64encode(b"x").decode() for key in keys}
            self.answers[f"{SPACE}/secrets/{name}"] = of("Secret", name, data=data)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    made = Cluster()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            missing = {
                "kind": "Status",
                "apiVersion": "v1",
                "status": "Failure",
                "reason": "NotFound",
                "code": 404,
            }
            found = made.answers.get(self.path.partition("?")[0])
            body = json.dumps(found or missing).encode()
            self.send_response(200 if found else 404)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    configuration = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
        "users": [{"name": "c", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c", "namespace": "default"}}],
    }
    (tmp_path / "config").write_text(json.dumps(configuration))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    monkeypatch.setenv("HOME", str(tmp_path))
    yield made
    server.shutdown()
    thread.join()
    server.server_close()


def refusals(program: str, *settings: str) -> list[str]:
    """Renders the preset for CPUs as an installation would; returns the lines about secrets.

    Helm 4 goes on to ask for all kinds of the cluster, which has none.
    """
    done = helm(program, "template", "smalti", str(CHART), "--dry-run=server", *arguments("cpu", settings))
    found = [line for line in done.stderr.splitlines() if "Secret: " in line]
    assert done.returncode == 0 or found or "unable to build kubernetes objects" in done.stderr, done.stderr
    return found


@pytest.mark.parametrize("program", HELMS)
def test_missing_secret_is_named_before_anything_is_applied(program: str, cluster: Cluster) -> None:
    assert refusals(program) == []
    kept = cluster.answers.pop(f"{SPACE}/secrets/smalti-database")
    (line,) = refusals(program)
    told = "database.existingSecret: there is no secret smalti-database in namespace default; make it first"
    assert told in line
    assert refusals(program, "checkSecrets=false") == []
    cluster.answers[f"{SPACE}/secrets/smalti-database"] = {**kept, "data": {"URL": "eA=="}}
    (line,) = refusals(program)
    assert "database.existingSecret: secret smalti-database in namespace default has no key" in line
    # Where the namespace is not there yet, its secrets are not asked for.
    del cluster.answers[f"{SPACE}/serviceaccounts/default"]
    assert refusals(program) == []
