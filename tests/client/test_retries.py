"""Calls are repeated while the gateway is away or full, and never otherwise."""

import pytest

from harness.clients import ONCE, AnyClient
from harness.image_service import ServedGateway
from smalti.errors import (
    JobNotSucceededError,
    NotSupportedError,
    OverloadedError,
    RemoteError,
    UnavailableError,
)
from smalti.up.servers import free_port


def test_create_is_repeated_with_the_same_id_when_the_answer_is_lost(
    client: AnyClient, served: ServedGateway
) -> None:
    client.model()
    served.gateway.lost_answers["CreateImages"] = 2
    job = client.create("a fox")
    assert list(served.gateway.jobs) == [job.id]
    assert len({call.request_id for call in served.gateway.calls["CreateImages"]}) == 1
    assert len(served.gateway.calls["CreateImages"]) == 3


def test_only_unavailable_is_retried(client: AnyClient, served: ServedGateway) -> None:
    client.model()
    for error in (JobNotSucceededError("no"), NotSupportedError("no"), RuntimeError("no")):
        served.gateway.failures["GetJob"].append(error)
        before = len(served.gateway.calls["GetJob"])
        with pytest.raises((JobNotSucceededError, NotSupportedError, RemoteError)):
            client.get("job-0")
        assert len(served.gateway.calls["GetJob"]) == before + 1


def test_server_that_has_never_answered_is_given_up_at_once(client: AnyClient) -> None:
    nobody = AnyClient("blocking", f"127.0.0.1:{free_port()}", settings=ONCE, retry_seconds=3600)
    try:
        with pytest.raises(UnavailableError):
            nobody.model()
        with pytest.raises(UnavailableError):
            nobody.watch("job-0")
    finally:
        nobody.end()


def test_retries_end(served: ServedGateway) -> None:
    client = AnyClient("blocking", served.address, settings=ONCE, retry_seconds=0.5)
    try:
        client.model()
        served.gateway.failures["GetJob"] += [UnavailableError("down")] * 50
        with pytest.raises(UnavailableError, match="down"):
            client.get("job-0")
        assert 1 < len(served.gateway.calls["GetJob"]) < 10
    finally:
        client.end()


def test_full_server_says_when_to_retry(client: AnyClient, served: ServedGateway) -> None:
    served.gateway.failures["CreateImages"].append(OverloadedError("full", 0.3))
    with pytest.raises(OverloadedError) as caught:
        client.create("a fox")
    assert caught.value.retry_after == 0.3
    assert len(served.gateway.calls["CreateImages"]) == 1


def test_wait_waits_for_a_full_server(client: AnyClient, served: ServedGateway) -> None:
    served.gateway.failures["CreateImages"] += [OverloadedError("full", 0.1)] * 2
    assert client.create("a fox", wait=10).id == "job-0"
    assert len(served.gateway.calls["CreateImages"]) == 3
    served.gateway.failures["CreateImages"].append(OverloadedError("full", 60))
    with pytest.raises(OverloadedError):
        client.create("a fox", wait=10)
