"""The verdicts on pictures: which gateway asks for them, and what they count."""

import pytest
from sqlalchemy import update

from harness.gateway import MakeGateway, candidates, counted, encoded_job, finish_chunk
from harness.objects import key_of
from harness.policy import PolicyProcess
from harness.waiting import wait_until
from smalti.services.gateway.database.clock import ManualClock, to_microseconds
from smalti.services.gateway.database.connection import Database
from smalti.services.gateway.database.tables import Job
from smalti.storage import JobKeys, MemoryStore

pytestmark = pytest.mark.process


def test_one_of_several_gateways_asks(make_gateway: MakeGateway) -> None:
    with PolicyProcess() as process:
        store, clock = MemoryStore(), ManualClock()
        gateway, other = (make_gateway(policy_hook=process.url, store=store, clock=clock) for _ in range(2))
        counts = [counted(each) for each in (gateway, other)]
        process.pause()
        job = gateway.create()
        gateway.run_jobs()
        wait_until(lambda: gateway.get(job).job.asked_until is not None)
        for each in (gateway, other):
            each.gateway.sweep()
        process.resume()
        assert candidates(gateway, job) == [7, 6, 5]
        assert counts == [{("picture", "hook", "permitted"): 3}, {}]
        assert gateway.get(job).job.asked_until is None


def test_job_of_a_gateway_that_died_while_it_asked_is_asked_about_again(
    make_gateway: MakeGateway, hook: PolicyProcess, database: Database
) -> None:
    gateway = make_gateway(policy_hook=hook.url)
    counts = counted(gateway)
    job = gateway.create()
    with database.write() as session:
        session.execute(update(Job).values(asked_until=to_microseconds(gateway.clock() + 60)))
    gateway.run_jobs()
    gateway.gateway.sweep()
    assert gateway.state(job) == "running"
    assert not counts
    gateway.clock.advance(61)
    gateway.gateway.sweep()
    assert candidates(gateway, job) == [7, 6, 5]


def test_pictures_that_are_made_again_are_not_counted_as_refused(
    make_gateway: MakeGateway, hook: PolicyProcess
) -> None:
    gateway = make_gateway(policy_hook=hook.url)
    job, _, generates = encoded_job(gateway, labels={"refuse": "7"})
    last = [finish_chunk(gateway, generate) for generate in generates]
    gateway.store.delete(key_of(gateway.store, JobKeys(job).tokens(1)))
    gateway.handle(*last)
    wait_until(lambda: gateway.get(job).job.candidates_ranked == 4)
    assert gateway.get(job).job.pictures_refused == 0
    gateway.clock.advance(121)
    gateway.run_jobs()
    assert candidates(gateway, job) == [6, 5, 4]
    assert gateway.get(job).job.pictures_refused == 1
