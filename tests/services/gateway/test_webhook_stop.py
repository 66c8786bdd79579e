"""The end of a gateway while webhooks are on their way."""

import asyncio
import gc
import socket
import threading
import warnings
from typing import Any

import pytest

from harness.gateway import GatewayHarness
from harness.receiver import Receiver
from smalti.services.gateway.database.connection import Database
from smalti.services.gateway.database.tables import DEFAULT_TENANT
from smalti.services.gateway.webhooks import Deliveries, WebhookRepository, WebhookSettings

pytestmark = pytest.mark.usefixtures("private")


class HeldLoop(asyncio.SelectorEventLoop):
    """An event loop that counts what other threads have asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = threading.Semaphore(0)

    def call_soon_threadsafe(self, *arguments: Any, **options: Any) -> asyncio.Handle:  # type: ignore[override]
        handle = super().call_soon_threadsafe(*arguments, **options)
        self.asked.release()
        return handle


def test_stop_while_a_connection_begins_leaves_no_coroutine_behind(
    gateway: GatewayHarness, receiver: Receiver, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    webhooks = WebhookRepository(database, gateway.clock)
    webhooks.set(DEFAULT_TENANT, url=receiver.url)
    gateway.cancel(gateway.create())
    loop, looking_up, found, go_on = HeldLoop(), threading.Event(), threading.Event(), threading.Event()
    look_up = socket.getaddrinfo

    def look_up_when_told(*arguments: Any, **options: Any) -> Any:
        looking_up.set()
        found.wait(60)
        return look_up(*arguments, **options)

    monkeypatch.setattr(asyncio, "new_event_loop", lambda: loop)
    monkeypatch.setattr(socket, "getaddrinfo", look_up_when_told)
    deliveries = Deliveries(database, clock=gateway.clock, settings=WebhookSettings())
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        assert deliveries.send_due() == 1
        assert looking_up.wait(60)
        loop.call_soon_threadsafe(go_on.wait, 60)
        while loop.asked.acquire(blocking=False):
            pass
        # The loop learns of the address and of the stop at once: it stops when anyio has made the task that connects,
        # and before that task begins.
        found.set()
        assert loop.asked.acquire(timeout=60)
        stopping = threading.Thread(target=deliveries.stop)
        stopping.start()
        assert loop.asked.acquire(timeout=60)
        go_on.set()
        stopping.join(60)
        gc.collect()
    assert not [str(each.message) for each in warned]
    assert receiver.received == []
