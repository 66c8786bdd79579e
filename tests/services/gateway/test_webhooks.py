"""Webhooks: ends of jobs are told, signed, until they are taken, and nobody else's servers are reached."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from harness.certificates import make_identity
from harness.gateway import GatewayHarness, MakeGateway
from harness.gateway_calls import create_job, served
from harness.grpc_server import asynchronous
from harness.receiver import Receiver
from harness.telemetry import captured_log
from harness.waiting import wait_until
from smalti.client import verify_webhook
from smalti.errors import InvalidInputError
from smalti.services.gateway.database.connection import Database
from smalti.services.gateway.database.tables import DEFAULT_TENANT, Delivery, JobState
from smalti.services.gateway.jobs.lifecycle import end, lock_open
from smalti.services.gateway.jobs.spec import JobWebhook
from smalti.services.gateway.webhooks import Deliveries, WebhookRepository, WebhookSettings
from smalti.services.gateway.webhooks.deliveries import DELAYS, MAX_AGE_SECONDS
from smalti.v1 import image_pb2
from tests.services.gateway.test_tenants import add_tenant

pytestmark = pytest.mark.usefixtures("private")


def webhooks(gateway: GatewayHarness) -> WebhookRepository:
    return WebhookRepository(gateway.gateway.context.database, gateway.clock)


def secret_of(gateway: GatewayHarness, url: str | None, **options: Any) -> str:
    """Makes the webhook of the default tenant; returns its secret."""
    _, secret = webhooks(gateway).set(DEFAULT_TENANT, url=url, **options)
    assert secret is not None
    return secret


def send(gateway: GatewayHarness) -> int:
    """Sends what is due, and waits until all of it has ended; returns how many."""
    number = gateway.gateway.deliveries.send_due()
    wait_until(lambda: gateway.gateway.deliveries.send_due() == 0 and not gateway.gateway.deliveries.flying)
    return number


def waiting(database: Database) -> list[Delivery]:
    with database.read() as session:
        return list(session.scalars(select(Delivery).order_by(Delivery.created)))


def body_of(receiver: Receiver, number: int = -1) -> Any:
    return json.loads(receiver.received[number].body)


def test_end_of_a_job_is_told_and_signed(gateway: GatewayHarness, receiver: Receiver) -> None:
    secret = secret_of(gateway, receiver.url)
    job = gateway.create("a secret prompt", labels={"order": "7"})
    assert send(gateway) == 0
    gateway.run_jobs()
    assert send(gateway) == 1
    (notice,) = receiver.received
    assert notice.path == "/ended"
    assert notice.headers["content-type"] == "application/json"
    assert verify_webhook(secret, notice.headers, notice.body, now=gateway.clock())
    told = body_of(receiver)
    assert told["type"] == "job.succeeded"
    state = {name: told["data"]["job"][name] for name in ("id", "state", "labels", "candidates", "pictures")}
    assert state == {
        "id": job,
        "state": "succeeded",
        "labels": {"order": "7"},
        "candidates": 8,
        "pictures": 3,
    }
    assert told["data"]["job"]["version"] == gateway.get(job).job.version
    assert b"secret prompt" not in notice.body
    assert waiting(gateway.gateway.context.database) == []
    assert send(gateway) == 0


def test_every_end_is_told_once(gateway: GatewayHarness, receiver: Receiver) -> None:
    secret_of(gateway, receiver.url)
    cancelled, expired = gateway.create(), gateway.create(time_limit=10.0)
    gateway.cancel(cancelled)
    gateway.cancel(cancelled)
    gateway.delete(cancelled)  # It is told of nevertheless.
    gateway.pass_time(11)
    send(gateway)
    told = [json.loads(each.body) for each in receiver.received]
    assert {each["type"]: each["data"]["job"]["id"] for each in told} == {
        "job.cancelled": cancelled,
        "job.expired": expired,
    }
    assert len({each.headers["webhook-id"] for each in receiver.received}) == 2


def test_job_has_a_url_and_a_wish_of_its_own(gateway: GatewayHarness, receiver: Receiver) -> None:
    secret_of(gateway, None)
    gateway.cancel(gateway.create())
    assert send(gateway) == 0
    own = JobWebhook(url=f"{receiver.url}?of=job", include_prompt=True)
    gateway.cancel(gateway.create("a fox", webhook=own))
    send(gateway)
    assert receiver.received[0].path == "/ended?of=job"
    assert body_of(receiver)["data"]["job"]["prompt"] == "a fox"
    webhooks(gateway).set(DEFAULT_TENANT, url=receiver.url, include_prompt=True)
    for wish in (None, JobWebhook(include_prompt=False)):
        gateway.cancel(gateway.create("a hen", webhook=wish))
        send(gateway)
    told = [json.loads(each.body)["data"]["job"] for each in receiver.received[1:]]
    assert ["prompt" in each for each in told] == [True, False]


def test_tenant_without_a_secret_is_told_nothing(gateway: GatewayHarness, database: Database) -> None:
    gateway.cancel(gateway.create(webhook=JobWebhook(url="https://example.org/")))
    assert waiting(database) == []


def test_what_is_not_taken_is_tried_again_with_growing_delays_for_a_day(
    gateway: GatewayHarness, receiver: Receiver, database: Database
) -> None:
    secret = secret_of(gateway, receiver.url)
    gateway.cancel(gateway.create())
    receiver.answers.extend([500] * 100)
    waits = []
    with captured_log() as log:
        while waiting(database):
            send(gateway)
            left = waiting(database)
            if left:
                waits.append(left[0].due / 1e6 - gateway.clock())
                gateway.clock.advance(waits[-1])
    assert len(waits) == len(DELAYS)
    assert waits == sorted(waits)
    assert MAX_AGE_SECONDS * 0.8 < sum(waits) <= MAX_AGE_SECONDS
    assert len({each.headers["webhook-id"] for each in receiver.received}) == 1
    times = [int(each.headers["webhook-timestamp"]) for each in receiver.received]
    assert times == sorted(times)
    assert times[-1] > times[0]
    verify_webhook(secret, receiver.received[-1].headers, receiver.received[-1].body, now=gateway.clock())
    (line,) = [line for line in log.lines if line["logger"] == "smalti.audit"]
    assert (line["event"], line["tries"], line["why"]) == (
        "webhook given up", len(DELAYS) + 1, "the receiver answers 500",
    )  # fmt: skip


def test_receiver_may_ask_for_a_later_try_or_for_none(
    gateway: GatewayHarness, receiver: Receiver, database: Database
) -> None:
    secret_of(gateway, receiver.url)
    gateway.cancel(gateway.create())
    receiver.headers["retry-after"] = "600"
    receiver.answers.extend([429, 410])
    send(gateway)
    (left,) = waiting(database)
    assert left.due / 1e6 - gateway.clock() == pytest.approx(600, abs=1)
    gateway.clock.advance(600)
    send(gateway)
    assert waiting(database) == []


def test_redirects_are_not_followed(gateway: GatewayHarness, receiver: Receiver, database: Database) -> None:
    secret_of(gateway, receiver.url)
    gateway.cancel(gateway.create())
    receiver.headers["location"] = f"http://127.0.0.1:{receiver.port}/elsewhere"
    receiver.answers.extend([307])
    send(gateway)
    assert [each.path for each in receiver.received] == ["/ended"]
    assert waiting(database)[0].problem == "the receiver answers 307"


def test_two_secrets_are_valid_at_a_time(gateway: GatewayHarness, receiver: Receiver) -> None:
    first = secret_of(gateway, receiver.url)
    second = webhooks(gateway).rotate(DEFAULT_TENANT)

    def verifies(secret: str) -> bool:
        gateway.cancel(gateway.create())
        send(gateway)
        notice = receiver.received[-1]
        try:
            verify_webhook(secret, notice.headers, notice.body, now=gateway.clock())
        except InvalidInputError:
            return False
        return True

    assert [verifies(each) for each in (first, second)] == [True, True]
    gateway.clock.advance(24 * 3600 + 1)
    assert [verifies(each) for each in (first, second)] == [False, True]
    third = webhooks(gateway).rotate(DEFAULT_TENANT, keep=0)
    assert [verifies(each) for each in (second, third)] == [False, True]


def test_notice_is_stored_with_the_end_or_not_at_all(gateway: GatewayHarness, database: Database) -> None:
    secret_of(gateway, "https://example.org/")
    job = gateway.create()
    with pytest.raises(RuntimeError, match="power cut"):
        end_without_commit(gateway, database, job)
    assert waiting(database) == []
    assert gateway.state(job) == "queued"
    gateway.cancel(job)
    assert len(waiting(database)) == 1


def end_without_commit(gateway: GatewayHarness, database: Database, job: str) -> None:
    with database.write() as session:
        locked = lock_open(session, job)
        assert locked is not None
        end(session, locked, JobState.CANCELLED, gateway.clock())
        session.flush()
        raise RuntimeError("power cut")


def test_another_gateway_sends_what_a_dead_one_was_sending(
    make_gateway: MakeGateway, receiver: Receiver, database: Database
) -> None:
    dying, other = make_gateway(), make_gateway()
    secret_of(dying, receiver.url)
    dying.cancel(dying.create())
    receiver.holding.clear()
    assert dying.gateway.deliveries.send_due() == 1
    wait_until(lambda: len(receiver.received) == 1)
    assert other.gateway.deliveries.send_due() == 0  # It is claimed.
    receiver.holding.set()  # It is taken, but the gateway that sent it dies before it notes that.
    other.clock.advance(dying.gateway.context.webhooks.timeout + 31)
    send(other)
    assert [each.headers["webhook-id"] for each in receiver.received[:1]] * 2 == [
        each.headers["webhook-id"] for each in receiver.received
    ]
    assert waiting(database) == []
    # What the first one notes now changes nothing.
    wait_until(lambda: dying.gateway.deliveries.send_due() == 0 and not dying.gateway.deliveries.flying)
    dying.gateway.deliveries.stop()


def test_slow_receiver_holds_up_nobody_else(
    gateway: GatewayHarness, receiver: Receiver, database: Database
) -> None:
    add_tenant(database, "slow")
    secret_of(gateway, receiver.url)
    with Receiver() as slow:
        slow.holding.clear()
        webhooks(gateway).set("slow", url=slow.url)
        for _ in range(60):
            gateway.cancel(gateway.create(tenant="slow"))
        gateway.cancel(gateway.create())
        deliveries = gateway.gateway.deliveries
        deliveries.send_due()
        wait_until(lambda: len(receiver.received) == 1)
        assert deliveries.flying <= 1 + gateway.gateway.context.webhooks.together // 8
        slow.holding.set()
        wait_until(lambda: (deliveries.send_due(), len(slow.received))[1] == 60)
        deliveries.stop()


def add_notices(database: Database, number: int, *, tenant: str, url: str, created: float) -> None:
    """Stores notices that are due, and were never tried."""
    moment = round(created * 1e6)
    common: dict[str, Any] = {"version": 1, "url": url, "body": "{}", "created": moment, "due": moment}
    names = [f"{tenant} {each}" for each in range(number)]
    rows = [Delivery(id=name, tenant=tenant, subject=name, **common) for name in names]
    with database.write() as session:
        session.add_all(rows)


def test_thousands_that_wait_for_a_slow_receiver_hide_nobody(
    gateway: GatewayHarness, receiver: Receiver, database: Database
) -> None:
    secret_of(gateway, receiver.url)
    add_tenant(database, "slow")
    with Receiver() as slow:
        slow.holding.clear()
        webhooks(gateway).set("slow", url=slow.url)
        add_notices(database, 2000, tenant="slow", url=slow.url, created=gateway.clock() - 60)
        deliveries = gateway.gateway.deliveries
        deliveries.send_due()
        gateway.cancel(gateway.create())
        assert deliveries.send_due() == 1
        wait_until(lambda: len(receiver.received) == 1)
        deliveries.stop()


def test_many_slow_receivers_leave_the_next_place_to_others(
    gateway: GatewayHarness, receiver: Receiver, database: Database
) -> None:
    with Receiver() as slow, Receiver() as slower:
        slow.holding.clear()
        slower.holding.clear()
        for tenant, url in (("slow", slow.url), ("slower", slower.url)):
            add_tenant(database, tenant)
            webhooks(gateway).set(tenant, url=url)
            add_notices(database, 100, tenant=tenant, url=url, created=gateway.clock() - 60)
        secret_of(gateway, receiver.url)
        gateway.cancel(gateway.create())
        settings = WebhookSettings(timeout=0.3, together=2)
        with stopping(Deliveries(database, clock=gateway.clock, settings=settings)) as deliveries:
            assert deliveries.send_due() == 2
            wait_until(lambda: (deliveries.send_due(), len(receiver.received))[1] == 1)
            assert len(slow.received) + len(slower.received) <= 5


def test_what_has_waited_for_a_day_is_given_up(
    gateway: GatewayHarness, receiver: Receiver, database: Database
) -> None:
    secret_of(gateway, receiver.url)
    created = gateway.clock() - MAX_AGE_SECONDS - 1
    add_notices(database, 3, tenant=DEFAULT_TENANT, url=receiver.url, created=created)
    with captured_log() as log:
        assert send(gateway) == 0
    assert receiver.received == waiting(database) == []
    lines = [line for line in log.lines if line["logger"] == "smalti.audit"]
    assert [(line["event"], line["tries"]) for line in lines] == [("webhook given up", 0)] * 3


def test_receiver_that_does_not_answer_costs_no_more_than_its_time(
    database: Database, gateway: GatewayHarness, receiver: Receiver
) -> None:
    secret_of(gateway, receiver.url)
    gateway.cancel(gateway.create())
    receiver.holding.clear()
    settings = WebhookSettings(timeout=0.3)
    with stopping(Deliveries(database, clock=gateway.clock, settings=settings)) as deliveries:
        began = time.monotonic()
        deliveries.send_due()
        wait_until(lambda: deliveries.send_due() == 0 and not deliveries.flying)
        assert time.monotonic() - began < 30
    assert waiting(database)[0].problem == "no answer within 0.3 s"


@contextmanager
def stopping(deliveries: Deliveries) -> Iterator[Deliveries]:
    """Stops deliveries after the block."""
    yield deliveries
    deliveries.stop()


def test_notices_of_a_subject_come_in_order(
    gateway: GatewayHarness, receiver: Receiver, database: Database
) -> None:
    secret_of(gateway, receiver.url)
    gateway.cancel(gateway.create())
    with database.write() as session:
        (first,) = session.scalars(select(Delivery))
        session.add(
            Delivery(
                id="later", tenant=first.tenant, subject=first.subject, version=first.version + 1, url=first.url,
                body='{"later": true}', created=first.created, due=first.due,
            )
        )  # fmt: skip
    receiver.answers.append(503)
    send(gateway)
    assert len(receiver.received) == 1  # The later one waits until the first one was taken.
    gateway.clock.advance(10)
    send(gateway)
    send(gateway)
    assert [each.body == b'{"later": true}' for each in receiver.received] == [False, False, True]


def test_https_needs_a_certificate_that_is_trusted(
    make_gateway: MakeGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database: Database
) -> None:
    authority = make_identity(tmp_path, "authority")
    identity = make_identity(tmp_path, "receiver", signed_by=authority)
    with Receiver(identity) as receiver:
        gateway = make_gateway()
        secret_of(gateway, receiver.url)
        gateway.cancel(gateway.create())
        send(gateway)
        assert "certificate verify failed" in str(waiting(database)[0].problem)
        gateway.gateway.deliveries.stop()
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate_file))
        gateway.clock.advance(10)
        send(gateway)
        assert len(receiver.received) == 1
        gateway.gateway.deliveries.stop()


# Calls


@asynchronous
async def test_request_names_a_webhook(gateway: GatewayHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    async with served(gateway) as stub:
        with pytest.raises(InvalidInputError, match="has no secret that signs") as refused:
            await create_job(stub, webhook=image_pb2.Webhook(url="https://example.org/"))
        assert refused.value.field == "webhook.url"
        secret_of(gateway, None)
        with pytest.raises(InvalidInputError, match="must be set, since tenant default has none"):
            await create_job(stub, webhook=image_pb2.Webhook(include_prompt=True))
        with pytest.raises(InvalidInputError, match="must be an https URL"):
            await create_job(stub, webhook=image_pb2.Webhook(url="gopher://example.org/"))
        job = await create_job(stub, webhook=image_pb2.Webhook(url="https://example.org/x"))
    assert gateway.get(job.id).job.webhook == {"url": "https://example.org/x"}
