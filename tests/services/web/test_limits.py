"""What clients may take, what surrounds the answers, and how the service starts and stops."""

import socket
import threading
from typing import Any

import httpx2
import pytest

from harness.telemetry import sample_reader
from harness.web import WebHarness
from smalti.errors import InvalidInputError, OverloadedError
from smalti.services.web.limits import ClientLimits
from smalti.services.web.service import listening_socket
from smalti.services.web.settings import WebSettings, web_settings
from tests.services.web.conftest import MakeWeb

PATH = "/v1/images/generations"


def raw(web: WebHarness, data: bytes) -> socket.socket:
    """Opens a connection and sends bytes."""
    connection = socket.create_connection(("127.0.0.1", int(web.url.rpartition(":")[2])), 20)
    connection.sendall(data)
    return connection


def rest(connection: socket.socket) -> bytes:
    """Reads until the server closes the connection."""
    with connection:
        found = b""
        try:
            while part := connection.recv(65536):
                found += part
        except ConnectionResetError:
            pass
        return found


def test_slow_clients_are_cut_off(make_web: MakeWeb) -> None:
    web = make_web(header_timeout=0.2, body_timeout=0.2, keep_alive=0.2, body_bytes=1024)
    head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    silent = [
        raw(web, b""),
        raw(web, b"GET /healthz HTTP/1.1\r\nhost:"),
        raw(web, b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"),
    ]
    slow = raw(web, f"{head}content-length: 100\r\n\r\n{{".encode())
    announced = raw(web, f"{head}content-length: 99999\r\n\r\n{{".encode())
    chunked = raw(web, f"{head}transfer-encoding: chunked\r\n\r\n7d0\r\n{'x' * 2000}\r\n".encode())
    assert [rest(connection)[:12] for connection in silent] == [b"", b"", b"HTTP/1.1 200"]
    assert [rest(connection)[9:12] for connection in (slow, announced, chunked)] == [b"408", b"413", b"413"]
    assert web.jobs == []
    with web.client() as http:
        assert http.get("/healthz").status_code == 200


def test_connections_above_the_limit_are_closed_at_once(make_web: MakeWeb) -> None:
    web = make_web(connections=4, header_timeout=600)
    idle = [raw(web, b"GET /healthz HTTP/1.1\r\n") for _ in range(12)]
    for connection in idle[4:]:
        connection.settimeout(20)
        assert rest(connection) == b""
    for connection in idle[:4]:
        connection.sendall(b"host: x\r\nconnection: close\r\n\r\n")
        assert rest(connection).startswith(b"HTTP/1.1 200")
    with web.client() as http:
        assert http.get("/healthz").status_code == 200


def test_no_part_of_an_answer_waits_for_an_acknowledgement() -> None:
    with (
        listening_socket(WebSettings(port=0)) as listening,
        socket.create_connection(listening.getsockname()),
    ):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_each_client_has_its_own_limits() -> None:
    now = [0.0]
    limits = ClientLimits(requests=2, rate=0.1, clock=lambda: now[0])
    with limits.request("a"), limits.request("a"):
        with pytest.raises(OverloadedError, match="2 requests of this client"), limits.request("a"):
            pass
        with limits.request("b"):
            pass
    with (
        pytest.raises(OverloadedError, match="more than 0") as refused,
        limits.request("a"),
    ):
        pass
    assert refused.value.retry_after == pytest.approx(10)
    now[0] += 10
    with limits.request("a"):
        pass


def test_client_is_the_address_that_a_trusted_proxy_names(make_web: MakeWeb) -> None:
    trusting = make_web(proxies="127.0.0.0/8", client_rate=0.01)
    distrusting = make_web(client_rate=0.01)
    for web, expected in ((trusting, [200, 429, 200, 200, 429]), (distrusting, [200, 429, 429, 429, 429])):
        with web.client() as http:
            addresses = ("192.0.2.1", "192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2")
            statuses = [
                http.get("/v1/models", headers={"x-forwarded-for": address}).status_code
                for address in addresses
            ]
        assert statuses == expected
    with trusting.client() as http:
        forwarded = {"x-forwarded-for": "192.0.2.9", "x-forwarded-proto": "https", "host": "pictures.example"}
        answer = http.post(PATH, json={"prompt": "a cat", "response_format": "url"}, headers=forwarded)
        assert answer.json()["data"][0]["url"].startswith("https://pictures.example/v1/images/")


def test_headers_of_answers(http: httpx2.Client, web: WebHarness) -> None:
    answer = http.get("/v1/models", headers={"x-request-id": "mine-1", "accept-encoding": "gzip"})
    assert answer.headers["x-request-id"] == "mine-1"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert len(http.get("/v1/models", headers={"x-request-id": "not\tgood"}).headers["x-request-id"]) == 32
    assert (
        "access-control-allow-origin"
        not in http.get("/v1/models", headers={"origin": "https://a.example"}).headers
    )
    document = http.get("/openapi.json")
    assert document.headers["content-encoding"] == "gzip"
    schema = document.json()
    assert {"seed", "guidance_scale", "partial_images"} <= set(
        schema["components"]["schemas"]["GenerationRequest"]["properties"]
    )
    page = http.get("/docs")
    assert "sha256-" in page.headers["content-security-policy"]
    assert "//" not in page.text.replace("http://www.w3.org", "").split("<script")[1].split('"')[1]
    assert http.get("/docs/files/swagger-ui-bundle.js").status_code == 200
    start = http.get("/")
    assert "script-src 'self'" in start.headers["content-security-policy"]
    value = sample_reader(web.metrics)
    web.wait(lambda: value("requests_total", entry="GET /v1/models", outcome="done", reason="") >= 3)


def test_pages_of_listed_origins_may_use_the_api(make_web: MakeWeb) -> None:
    web = make_web(origins="https://a.example, https://b.example", client_rate=0.01)
    with web.client() as http:
        for status in (200, 429):
            answer = http.get("/v1/models", headers={"origin": "https://b.example"})
            assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (
                status,
                "https://b.example",
            )
        asked = {"origin": "https://c.example", "access-control-request-method": "POST"}
        assert http.options(PATH, headers=asked).status_code == 400


def test_drain_finishes_what_has_begun_and_retry_finds_the_rest(make_web: MakeWeb) -> None:
    web = make_web(grace=0.5, drain_delay=0.3)
    web.paused.set()
    answers: list[Any] = []
    with web.client() as http, web.client() as other:
        job = other.post("/api/jobs", json={"prompt": "a dog"}).json()["id"]
        thread = threading.Thread(target=lambda: answers.append(http.post(PATH, json={"prompt": "a cat"})))
        thread.start()
        web.wait(lambda: len(web.jobs) == 2)
        with other.stream("GET", f"/api/jobs/{job}/events") as stream:
            web.begin_stop()
            web.wait(lambda: other_status(web) == 503)
            lines = list(stream.iter_lines())
        thread.join(30)
    assert '"reason":"DRAINING"' in "".join(lines)
    assert answers[0].status_code == 503
    assert answers[0].headers["retry-after"] == "1"
    assert web.states() == ["queued", "queued"]
    web.stop()
    web.start()
    web.paused.clear()
    with web.client() as http:
        again = http.post(PATH, json={"prompt": "a cat"}, headers={"x-stainless-retry-count": "1"})
    assert again.json()["id"] == web.jobs[0].job.id
    assert len(web.jobs) == 2


def other_status(web: WebHarness) -> int:
    try:
        return httpx2.get(f"{web.url}/readyz").status_code
    except httpx2.TransportError:
        return 503


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({"HOST": "0.0.0.0"}, r"SMALTI_WEB_\*: SMALTI_WEB_HOST=0.0.0.0 lets others draw"),
        ({"TLS_KEY": "/key.pem"}, r"set both SMALTI_WEB_TLS_CERTIFICATE and"),
        ({"PROXIES": "10.0.0.0/8, proxy"}, r"SMALTI_WEB_PROXIES: 'proxy' must be an address"),
        ({"ORIGINS": "https://a.example/"}, r"SMALTI_WEB_ORIGINS: 'https://a.example/' must be an origin"),
        ({"PUBLIC_URL": "pictures.example"}, r"SMALTI_WEB_PUBLIC_URL: .* must be a URL"),
        ({"SIGNING_KEY": "short"}, r"SMALTI_WEB_SIGNING_KEY must have at least 32"),
    ],
)
def test_invalid_setting_names_its_variable(
    variables: dict[str, str], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"SMALTI_WEB_{name}", value)
    with pytest.raises(InvalidInputError, match=problem) as refused:
        web_settings()
    assert "short" not in str(refused.value)
