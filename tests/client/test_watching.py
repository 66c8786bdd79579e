"""Watching a job: every version once, also when the connection breaks."""

import threading

import pytest

from harness.clients import ALL_VERSIONS, ONCE, AnyClient, versions
from harness.image_service import ServedGateway
from smalti.client import Client
from smalti.errors import OverloadedError, RequestCancelledError, RequestExpiredError, UnavailableError
from smalti.v1.job_pb2 import Job


def test_watch_yields_every_version_once_and_ends(client: AnyClient) -> None:
    job = client.create("a fox")
    assert versions(client.watch(job.id)) == ALL_VERSIONS
    assert versions(client.watch(job.id, since_version=4)) == ALL_VERSIONS[4:]
    # A job that has ended is always yielded.
    assert versions(client.watch(job.id, since_version=ALL_VERSIONS[-1])) == ALL_VERSIONS[-1:]


def test_watch_that_breaks_resumes_where_it_was(client: AnyClient, served: ServedGateway) -> None:
    job = client.create("a fox")
    served.gateway.breaks["WatchJob"] = [2, 3]
    assert versions(client.watch(job.id)) == ALL_VERSIONS
    calls = served.gateway.calls["WatchJob"]
    assert [call.since_version for call in calls] == [0, 2, 5]
    assert not calls[0].HasField("since_version")


def test_watch_that_ends_too_early_resumes(client: AnyClient, served: ServedGateway) -> None:
    job = client.create("a fox")
    served.gateway.silent_ends = [2]
    assert versions(client.watch(job.id)) == ALL_VERSIONS


def test_watch_that_is_refused_for_a_while_resumes(client: AnyClient, served: ServedGateway) -> None:
    job = client.create("a fox")
    served.gateway.failures["WatchJob"] += [
        OverloadedError("full", 0.1),
        RequestExpiredError("late"),
        RequestCancelledError("the server ends"),
    ]
    assert versions(client.watch(job.id)) == ALL_VERSIONS


def test_watch_outlives_the_server(served: ServedGateway) -> None:
    """The server stops and starts again on its port while a job is watched."""
    with Client(served.address, settings=ONCE, retry_seconds=30) as client:
        job = client.create("wait")
        seen: list[Job] = []
        thread = threading.Thread(target=lambda: seen.extend(client.watch(job.id)))
        thread.start()
        assert served.gateway.watching.wait(30)
        served.stop()
        served.start()
        served.go_on()
        thread.join(30)
        assert versions(seen) == ALL_VERSIONS


@pytest.mark.parametrize("kind", ["blocking", "async"])
def test_new_client_does_not_wait_for_the_pause_of_another(kind: str, served: ServedGateway) -> None:
    another = AnyClient(kind, served.address, settings=ONCE, retry_seconds=0)
    another.models()
    served.stop()
    try:
        for _ in range(2):
            with pytest.raises(UnavailableError):
                another.models()
    finally:
        served.start()
    new = AnyClient(kind, served.address, settings=ONCE, retry_seconds=0)
    assert new.models()
    new.end()
    another.end()


def test_events_request_tokens_and_previews(client: AnyClient, served: ServedGateway) -> None:
    job = client.create("a fox")
    assert versions(client.events(job.id)) == ALL_VERSIONS
    assert served.gateway.calls["WatchJob"][-1].include_rows
    assert served.gateway.calls["WatchJob"][-1].include_previews
    client.watch(job.id)
    assert not served.gateway.calls["WatchJob"][-1].include_rows


def test_close_ends_threads_and_streams(served: ServedGateway) -> None:
    """Threads end with the client, and a watch that was closed makes no more calls."""
    before = set(threading.enumerate())
    with Client(served.address, settings=ONCE) as client:
        job = client.create("wait")
        watch = client.watch(job.id)
        assert next(watch).id == job.id
        during = set(threading.enumerate()) - before
        assert during
        watch.close()
    served.go_on()
    for thread in during:
        thread.join(10)
        assert not thread.is_alive()
