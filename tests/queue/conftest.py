"""Fixtures for the tests of the queues: a broker of each kind, and a worker."""

import gc
from collections.abc import Iterator

import pytest

from harness.queue import BROKERS, QueueHarness, clear, settings_for
from harness.servers import RabbitMQServer, Server


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[RabbitMQServer]:
    """A broker; a test that stops it starts it again."""
    with RabbitMQServer() as server:
        # A crash before the first orderly stop would lose the newest queue of RabbitMQ 3.10: see docs/queue.md.
        clear(settings_for(server))
        server.stop()
        server.start()
        yield server


# RabbitMQ takes long to start, and a worker's process too; what does not depend on the kind of broker is tested on
# RabbitMQ with the slow tests.
mostly_on_valkey = pytest.mark.parametrize(
    "broker",
    [name if name == "valkey" else pytest.param(name, marks=pytest.mark.slow) for name in BROKERS],
    indirect=True,
)


@pytest.fixture(params=BROKERS)
def broker(request: pytest.FixtureRequest) -> Server:
    """A broker of each kind, with empty queues."""
    server: Server = request.getfixturevalue(request.param)
    if not server.running:
        server.start()
    clear(settings_for(server))
    return server


@pytest.fixture
def queue_harness(broker: Server) -> Iterator[QueueHarness]:
    """A publisher, and a worker once the test asks for one."""
    made = QueueHarness(settings_for(broker))
    yield made
    made.stop()


@pytest.fixture(scope="module", autouse=True)
def _collect_broken_connections() -> Iterator[None]:
    """Collects the sockets that py-amqp leaves open, so that their warnings do not reach a test of another room."""
    yield
    gc.collect()
