"""What the tests of the client share: a gateway that plays its jobs, and a client of each kind."""

from collections.abc import Iterator

import pytest

from harness.clients import ONCE, AnyClient
from harness.image_service import ServedGateway, served_gateway


@pytest.fixture(scope="module")
def server() -> Iterator[ServedGateway]:
    with served_gateway() as served:
        yield served


@pytest.fixture
def served(server: ServedGateway) -> ServedGateway:
    """The gateway, without jobs, and with a connection that does not break."""
    server.gateway.__init__()  # type: ignore[misc]
    server.batches.__init__()  # type: ignore[misc]
    return server


@pytest.fixture(params=["blocking", "async"])
def client(request: pytest.FixtureRequest, served: ServedGateway) -> Iterator[AnyClient]:
    uniform = AnyClient(request.param, served.address, settings=ONCE, retry_seconds=20)
    yield uniform
    uniform.end()
