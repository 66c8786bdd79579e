"""Where webhooks may be: nobody reaches servers that only the gateway reaches, whatever name they have."""

import ipaddress
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from harness.gateway import GatewayHarness
from harness.receiver import Receiver
from harness.waiting import wait_until
from smalti.errors import InvalidInputError
from smalti.services.gateway.database.connection import Database
from smalti.services.gateway.webhooks import Deliveries, WebhookSettings, check_url
from smalti.services.gateway.webhooks.addresses import is_public
from tests.services.gateway.conftest import any_database
from tests.services.gateway.test_webhooks import (
    secret_of,
    send,
    stopping,
    waiting,
)

pytestmark = pytest.mark.usefixtures("private")


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True), ("2606:2800:220:1:248:1893:25c8:1946", True), ("8.8.8.8", True),
        ("127.0.0.1", False), ("127.9.9.9", False), ("10.1.2.3", False), ("172.16.0.1", False), ("192.168.1.1", False),
        ("169.254.169.254", False), ("100.64.0.1", False), ("0.0.0.0", False), ("224.0.0.1", False),
        ("255.255.255.255", False), ("::1", False), ("::", False), ("fe80::1", False), ("fc00::1", False),
        ("ff02::1", False), ("::ffff:127.0.0.1", False), ("::ffff:8.8.8.8", True), ("64:ff9b::7f00:1", False),
        ("64:ff9b::808:808", True), ("2002:7f00:1::", False), ("::127.0.0.1", False), ("64:ff9b:1::1", False),
        ("fec0::1", False), ("2001:0:53aa:64c:0:0:80ff:fffe", False),
    ],
)  # fmt: skip
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is public


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://example.org/", "must be an https URL"),
        ("ftp://example.org/", "must be an https URL"),
        ("https:///x", "must be an https URL"),
        ("https://user:pass@example.org/", "must have no user"),
        ("https://example.org/#x", "must have no user, password or fragment"),
        ("https://example.org/a b", "without spaces"),
        ("https://example.org:99999/", "is not a valid URL"),
        ("https://127.0.0.1/", "127.0.0.1 is not a public address"),
        ("https://[::1]/", "::1 is not a public address"),
        ("https://169.254.169.254/latest/", "not a public address"),
        (f"https://example.org/{'x' * 2048}", "must have at most 2048 characters"),
    ],
)
def test_urls_that_are_refused(url: str, problem: str) -> None:
    with pytest.raises(InvalidInputError, match=f"^url: .*{problem}"):
        check_url(url, "url", private=False)
    assert check_url("https://example.org:8443/x?y=1", "url", private=False)


@any_database
@pytest.mark.parametrize("name", ["localhost", "127.1", "2130706433", "0x7f.1", "inside.test"])
def test_private_addresses_are_not_reached_by_any_name(
    name: str,
    database: Database,
    gateway: GatewayHarness,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever a name looks like, it is its address that counts."""
    look_up = socket.getaddrinfo
    if name == "inside.test":
        monkeypatch.setattr(
            socket, "getaddrinfo", lambda host, *rest, **more: look_up("127.0.0.1", *rest, **more)
        )
    secret_of(gateway, f"http://{name}:{receiver.port}/")
    gateway.cancel(gateway.create())
    with stopping(
        Deliveries(database, clock=gateway.clock, settings=WebhookSettings(private=False))
    ) as deliveries:
        deliveries.send_due()
        wait_until(lambda: deliveries.send_due() == 0 and not deliveries.flying)
    assert receiver.received == []
    assert "has no public address" in str(waiting(database)[0].problem)


@any_database
def test_name_is_looked_up_once(
    database: Database, gateway: GatewayHarness, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name server that answers differently the second time is not asked a second time."""
    look_up, asked = socket.getaddrinfo, []

    def answer(host: Any, *rest: Any, **more: Any) -> Any:
        if host == "rebinding.test":
            asked.append(host)
            return look_up("127.0.0.1", *rest, **more)
        return look_up(host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    secret_of(gateway, f"http://rebinding.test:{receiver.port}/")
    gateway.cancel(gateway.create())
    send(gateway)
    assert receiver.received[0].headers["host"] == f"rebinding.test:{receiver.port}"
    assert asked == ["rebinding.test"]


@any_database
def test_address_that_is_silent_leaves_time_for_the_next(
    database: Database, gateway: GatewayHarness, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses = ("127.0.0.2", "127.0.0.1")
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, port, **rest: [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in addresses
        ],
    )
    secret_of(gateway, f"http://two.test:{receiver.port}/")
    gateway.cancel(gateway.create())
    settings = WebhookSettings(private=True, timeout=2.0)
    with (
        full_listener("127.0.0.2", receiver.port),
        stopping(Deliveries(database, clock=gateway.clock, settings=settings)) as deliveries,
    ):
        deliveries.send_due()
        wait_until(lambda: deliveries.send_due() == 0 and not deliveries.flying)
    assert len(receiver.received) == 1


@contextmanager
def full_listener(address: str, port: int) -> Iterator[None]:
    """Occupies a port whose queue of connections is full, so that further ones get no answer."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind((address, port))
        listener.listen(0)
        for _ in range(4):
            caller = stack.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex((address, port))
        yield
