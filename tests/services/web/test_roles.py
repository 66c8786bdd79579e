"""Every route over HTTP with every role, from a table; and what the documentation page says of keys."""

import json
import re
from collections.abc import Mapping
from typing import Any

import httpx2
import pytest
from pydantic import SecretStr

from harness.web import WebHarness
from smalti.services.gateway.identity import Role
from smalti.settings import Auth
from tests.services.web.conftest import MakeWeb

CALLERS = {Role.DRAW, Role.BATCH, Role.ADMIN}
DRAWERS = {Role.DRAW, Role.ADMIN}
READERS = CALLERS | {Role.WEB}
JOB = {"prompt": "a blue cat", "n": 1, "candidates": 4}
FORM = {"image": ("x.png", b"no picture", "image/png")}

# Who may call what, written down a second time: a change of the gateway's table must be meant. Draws are interactive.
MAY: Mapping[tuple[str, str], set[Role]] = {
    ("POST", "/api/jobs"): DRAWERS,
    ("GET", "/api/jobs"): CALLERS,
    ("GET", "/api/jobs/{job_id}"): READERS,
    ("POST", "/api/jobs/{job_id}/cancel"): CALLERS,
    ("DELETE", "/api/jobs/{job_id}"): CALLERS,
    ("GET", "/api/jobs/{job_id}/events"): READERS,
    ("GET", "/api/models"): READERS,
    ("GET", "/api/models/{name}"): READERS,
    ("GET", "/api/wall/events"): READERS,
    ("POST", "/v1/images/generations"): DRAWERS,
    ("POST", "/v1/images/edits"): DRAWERS,
    ("POST", "/v1/images/variations"): DRAWERS,
    **dict.fromkeys(
        (
            *(("POST", "/v1/files"), ("GET", "/v1/files"), ("GET", "/v1/files/{file_id}")),
            *(("DELETE", "/v1/files/{file_id}"), ("GET", "/v1/files/{file_id}/content")),
            *(("POST", "/v1/uploads"), ("POST", "/v1/uploads/{upload_id}/parts")),
            *(("POST", "/v1/uploads/{upload_id}/complete"), ("POST", "/v1/uploads/{upload_id}/cancel")),
            *(("GET", "/v1/batches"), ("GET", "/v1/batches/{batch_id}")),
            ("POST", "/v1/batches/{batch_id}/cancel"),
        ),
        CALLERS,
    ),
    ("POST", "/v1/batches"): {Role.BATCH, Role.ADMIN},
    ("GET", "/v1/models"): READERS,
    ("GET", "/v1/models/{model}"): READERS,
}
REQUEST = {
    "custom_id": "1",
    "method": "POST",
    "url": "/v1/images/generations",
    "body": {"prompt": "a blue cat"},
}
BODIES: Mapping[tuple[str, str], dict[str, Any]] = {
    ("POST", "/api/jobs"): {"json": JOB},
    ("POST", "/v1/images/generations"): {"json": {"prompt": "a blue cat", "n": 1}},
    ("POST", "/v1/images/edits"): {"files": FORM, "data": {"prompt": "a cat"}},
    ("POST", "/v1/images/variations"): {"files": FORM, "data": {"prompt": "a cat"}},
    ("POST", "/v1/files"): {"files": {"file": ("x.jsonl", b"{}")}, "data": {"purpose": "batch"}},
    ("POST", "/v1/uploads"): {
        "json": {"bytes": 1, "filename": "x.jsonl", "mime_type": "application/jsonl", "purpose": "batch"}
    },
    ("POST", "/v1/uploads/{upload_id}/parts"): {"files": {"data": ("x", b"x")}},
    ("POST", "/v1/uploads/{upload_id}/complete"): {"json": {"part_ids": ["none"]}},
}
SIGNED = "/v1/images/"
"""URLs that need a signature, and no key."""


@pytest.fixture
def keyed(make_web: MakeWeb) -> tuple[WebHarness, dict[Role, str]]:
    """A web service whose gateway wants keys, and a key of each role."""
    web: WebHarness = make_web(auth=[Auth.KEYS], wall=True, client_rate=1000)
    keys = {role: web.gateway.keys.create("default", [role])[0] for role in Role}
    return web, keys


def request(http: httpx2.Client, route: tuple[str, str], key: str, file: str) -> int:
    """Sends a request of a route; returns the status. A stream of events is not read.

    Args:
        http: the client.
        route: method and path.
        key: the caller's key; empty for none.
        file: id of a file that a batch can be made of.
    """
    method, path = route
    body = BODIES.get(route, {})
    if route == ("POST", "/v1/batches"):
        body = {"json": {"input_file_id": file, "endpoint": REQUEST["url"], "completion_window": "24h"}}
    headers = {"authorization": f"Bearer {key}"} if key else {}
    with http.stream(method, re.sub(r"\{\w+\}", "none", path), headers=headers, **body) as answer:
        return answer.status_code


def test_table_has_every_route_and_no_other(keyed: tuple[WebHarness, dict[Role, str]]) -> None:
    web, _ = keyed
    with web.client() as http:
        paths = http.get("/openapi.json").json()["paths"]
    routes = {
        (method.upper(), path)
        for path, methods in paths.items()
        for method in methods
        if not re.match(rf"{SIGNED}[^/]*\{{", path)
    }
    assert routes == set(MAY)


@pytest.mark.parametrize("route", MAY)
def test_each_route_is_open_to_its_roles_alone(
    keyed: tuple[WebHarness, dict[Role, str]], route: tuple[str, str]
) -> None:
    web, keys = keyed
    with web.client() as http:
        made = http.post(
            "/v1/files",
            headers={"authorization": f"Bearer {keys[Role.ADMIN]}"},
            files={"file": ("x.jsonl", json.dumps(REQUEST).encode())},
            data={"purpose": "batch"},
        ).json()
        for role, key in keys.items():
            status = request(http, route, key, made["id"])
            assert status != 401
            assert (status == 403) is (role not in MAY[route]), (role, status)
        for nobody in ("", "sk-smalti-wrong"):
            assert request(http, route, nobody, made["id"]) == 401


def test_documentation_offers_to_send_a_key(make_web: MakeWeb) -> None:
    """The button "Authorize" of `/docs` follows from the scheme, and each route of the APIs has it."""
    web = make_web()
    with web.client() as http:
        document = http.get("/openapi.json").json()
        assert http.get("/api/models", headers={"authorization": "Basic eDp5"}).status_code == 200
    (scheme,) = document["components"]["securitySchemes"].items()
    assert (scheme[0], scheme[1]["type"], scheme[1]["scheme"]) == ("key", "http", "bearer")
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert operation["security"] == [{"key": []}], path


def test_role_of_the_web_service_draws_nothing(make_web: MakeWeb) -> None:
    web: WebHarness = make_web(auth=[Auth.KEYS])
    own, _ = web.gateway.keys.create("default", [Role.WEB])
    web.restart(key=SecretStr(own))
    with web.client() as http:
        assert http.post("/api/jobs", json=JOB).status_code == 401
