"""What callers may ask of the gateway, and leave in it; objects that a listing does not show are deleted too."""

from collections.abc import Iterator

import grpc
import pytest
from sqlalchemy import text

from harness.gateway import GatewayHarness, MakeGateway
from harness.gateway_calls import create_job, served
from harness.grpc_server import asynchronous
from smalti.errors import InvalidInputError, OverloadedError
from smalti.rpc.errors import translated
from smalti.services.gateway.database.connection import Database
from smalti.storage import MemoryStore, ObjectInfo
from smalti.v1 import image_pb2, job_pb2


@asynchronous
async def test_filter_of_a_list_has_no_more_labels_than_a_job(gateway: GatewayHarness) -> None:
    many = {f"label-{number}": "x" for number in range(17)}
    async with served(gateway) as stub:
        for request, field in (
            (image_pb2.ListJobsRequest(labels=many), "labels"),
            (image_pb2.ListJobsRequest(labels={"a": "\0"}), "labels.a"),
            (image_pb2.ListJobsRequest(states=[job_pb2.JOB_STATE_QUEUED] * 100), "states"),
        ):
            with pytest.raises(InvalidInputError) as caught, translated():
                await stub.ListJobs(request)
            assert caught.value.field == field
        # Tokens that nobody has given out.
        for token in ("WzFlNDAwLCJ4Il0", "W" * 10_000):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.ListJobs(image_pb2.ListJobsRequest(page_token=token))
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_stored_jobs_and_their_bytes_are_limited(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(stored_jobs=2)
    first = gateway.create()
    gateway.create()
    with pytest.raises(OverloadedError, match="too many jobs are stored"):
        gateway.create()
    gateway.delete(first)
    gateway.create()
    small = make_gateway(stored_bytes=2**20)
    for _ in range(100):
        try:
            small.create(given=(1,) * 4000)
        except OverloadedError:
            break
    else:
        pytest.fail("it stores any number of bytes")
    # After a restart, too, from the first call on.
    again = make_gateway(stored_bytes=2**20)
    with pytest.raises(OverloadedError):
        again.create()


class BlindStore(MemoryStore):
    """A store whose listings are behind: they show nothing."""

    blind = True

    def objects(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:
        """Yields nothing, while it is behind."""
        return iter(()) if self.blind else super().objects(prefix, after=after)


def test_objects_that_no_listing_shows_are_deleted_with_their_job(make_gateway: MakeGateway) -> None:
    store = BlindStore()
    gateway = make_gateway(store=store)
    job = gateway.create()
    gateway.run_jobs()
    gateway.pass_time(0)
    assert gateway.state(job) == "succeeded"
    pictures = [key for key in store.entries if "/candidates/" in key]
    assert sorted(store.entries) == sorted([*pictures, f"jobs/{job}/result.json"])
    assert len(pictures) == 8
    gateway.pass_time(5001)
    gateway.pass_time(1)
    assert store.entries == {}


def test_what_is_written_after_everything_was_deleted_is_deleted_days_later(
    make_gateway: MakeGateway,
) -> None:
    store = BlindStore()
    store.blind = False
    gateway = make_gateway(store=store)
    gateway.create()
    (task,) = gateway.send()
    gateway.handle(*gateway.stages.run(task))
    gateway.pass_time(10_000)
    gateway.pass_time(1)
    assert store.entries == {}
    list(gateway.stages.run(task))  # By a worker that was suspended all the time.
    assert store.entries
    gateway.pass_time(3 * 24 * 3600)
    assert store.entries == {}


def test_stored_jobs_are_counted_without_reading_them(sqlite: Database) -> None:
    with sqlite.read() as session:
        query = "SELECT tenant, count(*), sum(size) FROM jobs GROUP BY tenant"
        plan = session.execute(text(f"EXPLAIN QUERY PLAN {query}")).all()
    assert "COVERING INDEX jobs_stored" in str(plan)


@asynchronous
async def test_full_system_refuses_before_it_asks_the_policy(make_gateway: MakeGateway) -> None:
    # Nobody answers there.
    gateway = make_gateway(open_jobs=1, policy_hook="127.0.0.1:9", policy_timeout=1.0)
    gateway.create()
    async with served(gateway) as stub:
        with pytest.raises(OverloadedError, match="too many open jobs"):
            await create_job(stub)
