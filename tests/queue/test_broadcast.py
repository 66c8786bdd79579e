"""What gateways tell each other through the broker: all others hear it, and only what may be said."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from harness.queue import HARMLESS_WARNINGS, settings_for
from harness.servers import Server, ValkeyServer
from harness.signing import certificate
from harness.waiting import wait_until
from smalti.queue import Broadcast, BrokerSettings

pytestmark = [pytest.mark.server, *(pytest.mark.filterwarnings(each) for each in HARMLESS_WARNINGS)]

NAME = "smalti.rows"


class Listener:
    """Remembers what it hears."""

    def __init__(self, settings: BrokerSettings) -> None:
        self.heard: list[str] = []
        self.broadcast = Broadcast(NAME, "gateway", self.heard.append, settings)
        self.broadcast.start()
        wait_until(self.broadcast.listening.is_set)


Join = Callable[..., Listener]


@pytest.fixture
def join(broker: Server) -> Iterator[Join]:
    """Makes listeners on one broker."""
    with ExitStack() as stack:

        def made(**changes: Any) -> Listener:
            listener = Listener(settings_for(broker, **changes))
            stack.callback(listener.broadcast.stop)
            return listener

        yield made


def test_all_others_hear(join: Join) -> None:
    first, second, third = join(), join(), join()
    for number in range(3):
        assert first.broadcast.tell(f"row {number}")
    for other in (second, third):
        wait_until(lambda other=other: len(other.heard) == 3)  # type: ignore[misc]
        assert other.heard == ["row 0", "row 1", "row 2"]
    assert second.broadcast.tell("back")
    wait_until(lambda: first.heard == ["back"])
    assert second.heard == ["row 0", "row 1", "row 2"]


def test_another_database_of_valkey_is_another_system(valkey: ValkeyServer) -> None:
    base = valkey.url.rpartition("/")[0]
    with ExitStack() as stack:

        def made(database: int) -> Listener:
            url = SecretStr(f"{base}/{database}")
            listener = Listener(settings_for(valkey).model_copy(update={"url": url}))
            stack.callback(listener.broadcast.stop)
            return listener

        first, second, third, fourth = map(made, (0, 0, 1, 1))
        first.broadcast.tell("row")
        wait_until(lambda: second.heard == ["row"])
        third.broadcast.tell("other")
        wait_until(lambda: "other" in fourth.heard)
        assert fourth.heard == ["other"]
        assert second.heard == ["row"]


@pytest.mark.slow
def test_listener_is_back_with_the_broker(join: Join, broker: Server) -> None:
    first, second = join(), join()
    broker.kill()
    wait_until(lambda: not second.broadcast.listening.is_set(), 60)
    first.broadcast.tell("lost")
    broker.start()

    def hears() -> bool:
        first.broadcast.tell("back")
        return "back" in second.heard

    wait_until(hears, 60)


def test_full_buffer_drops_and_does_not_wait(join: Join, broker: Server) -> None:
    first = join()
    broker.pause()
    try:
        wait_until(lambda: not first.broadcast.tell("x" * 1000))
    finally:
        broker.resume()


def test_only_the_signatures_of_gateways_count(
    join: Join, broker: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = {owner: certificate(tmp_path, owner) for owner in ("gateway", "decoder")}

    def signed(owner: str) -> dict[str, Any]:
        key, public = keys[owner]
        return {"signing_key": key, "signing_certificate": public, "signing_trusted": tmp_path}

    def dropped(why: str) -> None:
        wait_until(lambda: why in caplog.text)

    unsigned = join()
    listener = join(**signed("gateway"))
    unsigned.broadcast.tell("unsigned")
    dropped("a message is dropped: Refusing to deserialize")
    # kombu has one signer per process, the last that was set up.
    join(**signed("decoder")).broadcast.tell("of a decoder")
    dropped("only the gateway may send it")
    join(**signed("gateway")).broadcast.tell("of a gateway")
    wait_until(lambda: listener.heard == ["of a gateway"])
