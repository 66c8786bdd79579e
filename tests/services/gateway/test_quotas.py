"""Limits of tenants: counted exactly by all gateways, told in a refusal, and no burden where there are none."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo, QuotaFailure, RetryInfo
from google.rpc.status_pb2 import Status
from sqlalchemy import select

from harness.gateway import GatewayHarness, MakeGateway, job_spec
from harness.gateway_calls import create_job, create_request, served
from harness.grpc_server import asynchronous
from smalti.errors import InvalidInputError, QuotaExceededError
from smalti.rpc.errors import DETAILS_KEY, translated
from smalti.services.gateway.database.clock import MICROSECONDS
from smalti.services.gateway.database.connection import Database
from smalti.services.gateway.database.tables import DEFAULT_TENANT, DailyUsage, Tenant
from smalti.services.gateway.jobs.capacity import in_words
from smalti.services.gateway.jobs.tenants import DAY
from tests.services.gateway.test_tenants import add_tenant, all_at_once

DAY_SECONDS = DAY / MICROSECONDS


def refused(gateway: GatewayHarness, **changes: Any) -> QuotaExceededError:
    with pytest.raises(QuotaExceededError) as caught:
        gateway.create(**changes)
    return caught.value


def test_requests_of_a_minute_come_back_evenly(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(requests_per_minute=6)
    for _ in range(6):
        gateway.create()
    error = refused(gateway)
    assert (error.quota, error.limit, error.left) == ("requests_per_minute", 6, 0)
    assert error.retry_after == pytest.approx(10, abs=0.01)
    assert str(error) == "tenant default may create 6 jobs a minute; try again in 10 s"
    gateway.clock.advance(error.retry_after)
    gateway.create()
    refused(gateway)
    gateway.clock.advance(3600)
    for _ in range(6):  # What was not used for an hour is not kept.
        gateway.create()
    refused(gateway)


def test_candidates_of_a_day_are_counted_until_midnight(gateway: GatewayHarness) -> None:
    add_tenant(gateway.gateway.context.database, "red", max_candidates=20)
    gateway.clock.advance(DAY_SECONDS - gateway.clock() % DAY_SECONDS + 3600)
    gateway.create(tenant="red", candidates=16)
    error = refused(gateway, tenant="red", candidates=8)
    assert (error.quota, error.limit, error.left) == ("candidates_per_day", 20, 4)
    assert error.retry_after == pytest.approx(23 * 3600, abs=1)
    assert "4 are left today, and the job has 8; try again in 23 h 0 min, at 00:00 UTC" in str(error)
    gateway.create(tenant="red", candidates=4)
    gateway.create(candidates=64)  # Others are not affected.
    gateway.clock.advance(error.retry_after)
    gateway.create(tenant="red", candidates=20)
    with pytest.raises(
        InvalidInputError, match=r"^candidates: must not be greater than 20, which tenant red"
    ):
        gateway.create(tenant="red", candidates=21)


def test_what_an_idle_system_gives_more_is_not_refused(make_gateway: MakeGateway, database: Database) -> None:
    gateway = make_gateway(idle_candidates=32)
    add_tenant(database, "red", max_candidates=48)
    given = [gateway.jobs.create(job_spec(tenant="red", candidates=None)).job for _ in range(2)]
    assert [job.candidates for job in given] == [32, 16]
    gateway.run_jobs()
    add_tenant(database, "blue", max_candidates=20)
    assert gateway.jobs.create(job_spec(tenant="blue", candidates=None)).job.candidates == 16
    gateway.run_jobs()
    assert refused(gateway, tenant="red", candidates=None).left == 0


def test_longest_prompt_and_retention(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(prompt_characters=10)
    add_tenant(gateway.gateway.context.database, "red", max_prompt=12, max_retention=600)
    gateway.create("x" * 10)
    with pytest.raises(
        InvalidInputError, match=r"^prompt: must have at most 10 characters for tenant default, got 11"
    ):
        gateway.create("x" * 11)
    gateway.create("x" * 12, tenant="red", retention=600.0)
    with pytest.raises(
        InvalidInputError, match=r"^retention: must be at most 600 s for tenant red, got 601 s"
    ):
        gateway.create(tenant="red", retention=601.0)
    for _ in range(2):  # A job that names none is kept as long as it may be.
        job = gateway.create(tenant="red", retention=None)
        assert gateway.get(job).job.retention == 600 * MICROSECONDS
    default = gateway.create(retention=None)
    assert gateway.get(default).job.retention == 24 * 3600 * MICROSECONDS


@pytest.mark.parametrize(
    ("limits", "accepted"), [({"max_requests": 5}, 5), ({"max_candidates": 40}, 5), ({}, 12)]
)
def test_limits_are_exact_for_two_gateways_together(
    make_gateway: MakeGateway, database: Database, limits: dict[str, int], accepted: int
) -> None:
    gateways = [make_gateway(), make_gateway()]
    add_tenant(database, "red", **limits)
    together = threading.Barrier(12)

    def create(number: int) -> bool:
        together.wait(30)
        try:
            gateways[number % 2].jobs.create(job_spec(tenant="red"))
        except QuotaExceededError:
            return False
        return True

    with ThreadPoolExecutor(12) as threads:
        assert sum(threads.map(create, range(12))) == accepted
    with database.read() as session:
        (used,) = session.scalars(select(DailyUsage)).all()
        assert (used.tenant, used.requests, used.candidates) == ("red", accepted, 8 * accepted)
        assert session.get_one(Tenant, "red").day_candidates == 8 * accepted


def test_jobs_that_come_together_are_counted_one_by_one(
    make_gateway: MakeGateway, database: Database
) -> None:
    gateway = make_gateway(requests_per_minute=6)
    with all_at_once(gateway, [job_spec()] * 10) as created:
        errors = [each.exception() for each in created]
    assert sum(error is None for error in errors) == 6
    assert sum(isinstance(error, QuotaExceededError) for error in errors) == 4
    with database.read() as session:
        assert (
            session.get_one(DailyUsage, (DEFAULT_TENANT, int(gateway.clock() // DAY_SECONDS) * DAY)).requests
            == 6
        )


def test_refused_and_repeated_requests_are_not_counted(make_gateway: MakeGateway, database: Database) -> None:
    gateway = make_gateway(requests_per_minute=2)
    same = {"request_id": "0f9d7ff4-7c6f-4a3c-9d52-0c4a3a3f3c11", "request_hash": "a" * 64}
    one = gateway.create(**same)
    assert gateway.create(**same) == one
    gateway.create()
    refused(gateway)
    refused(gateway)
    gateway.clock.advance(30)
    gateway.create()
    with database.read() as session:
        assert sum(session.scalars(select(DailyUsage.requests))) == 3


def test_old_usage_is_removed(gateway: GatewayHarness, database: Database) -> None:
    gateway.create()
    gateway.clock.advance(399 * DAY_SECONDS)
    gateway.create()
    gateway.gateway.expire_objects()
    assert len(usage(database)) == 2
    gateway.clock.advance(2 * DAY_SECONDS)
    gateway.gateway.expire_objects()
    assert len(usage(database)) == 1


def usage(database: Database) -> list[DailyUsage]:
    with database.read() as session:
        return list(session.scalars(select(DailyUsage)))


@asynchronous
async def test_refusal_has_the_details_of_grpc(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(candidates_per_day=20)
    async with served(gateway) as stub:
        await create_job(stub)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.CreateImages(
                create_request(lambda request: setattr(request.parameters, "candidates", 16))
            )
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        (content,) = [value for key, value in caught.value.trailing_metadata() or () if key == DETAILS_KEY]
        status = Status.FromString(content)  # type: ignore[arg-type]
        found: dict[type, Any] = {}
        for packed in status.details:
            for kind in (ErrorInfo, QuotaFailure, RetryInfo):
                if packed.Unpack(message := kind()):
                    found[kind] = message
        assert (found[ErrorInfo].reason, dict(found[ErrorInfo].metadata)) == (
            "QUOTA_EXCEEDED",
            {"left": "12"},
        )
        (violation,) = found[QuotaFailure].violations
        assert (violation.quota_metric, violation.quota_value) == ("candidates_per_day", 20)
        assert violation.description == status.message
        assert 0 < found[RetryInfo].retry_delay.seconds <= DAY_SECONDS
        with pytest.raises(InvalidInputError) as invalid, translated():
            await stub.CreateImages(
                create_request(lambda request: setattr(request.parameters, "candidates", 21))
            )
        assert invalid.value.field == "parameters.candidates"


@asynchronous
async def test_field_of_a_refusal_is_that_of_the_request(gateway: GatewayHarness, database: Database) -> None:
    with database.write() as session:
        session.get_one(Tenant, DEFAULT_TENANT).max_retention = 600
    async with served(gateway) as stub:
        with pytest.raises(InvalidInputError) as invalid, translated():
            await stub.CreateImages(create_request(retention=Duration(seconds=601)))
        assert invalid.value.field == "retention"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "1 s"),
        (12, "12 s"),
        (119.5, "2 min"),
        (121, "3 min"),
        (3599, "1 h 0 min"),
        (18720, "5 h 12 min"),
    ],
)
def test_times_are_told_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
