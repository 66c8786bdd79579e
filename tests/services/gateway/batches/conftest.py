"""What the tests of batches share: a gateway whose model has workers."""

import pytest

from harness.batches import BatchHarness
from harness.gateway import MakeGateway


@pytest.fixture
def batches(make_gateway: MakeGateway) -> BatchHarness:
    """A gateway whose threads do not run."""
    return BatchHarness(make_gateway(write=3))
