"""What the tests of the services share: the object store that service processes use."""

import pytest

from harness.servers import S3Server
from smalti.storage import ObjectStore, StoreSettings, open_store


@pytest.fixture(scope="session")
def store(s3: S3Server) -> ObjectStore:
    """The content of the object store."""
    return open_store(StoreSettings(url=s3.url))  # type: ignore[arg-type]
