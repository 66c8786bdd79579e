"""The simulated fleet agrees with theory, loses no job, and is the same for the same seed; the page has its numbers."""

import math
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import simpy
import sqlalchemy
from prometheus_client import CollectorRegistry

from benchmarks import fleet
from benchmarks.scale.costs import COSTS, Costs
from benchmarks.scale.counted_gateway import count
from benchmarks.scale.pages import cost_tables
from benchmarks.scale.parts import STATIONS, Chip, Demand, Job, Layout
from benchmarks.scale.planning import planning_tables
from benchmarks.scale.simulation import Fleet
from benchmarks.scale.stations import Station
from benchmarks.scale.turns import FirstCome, TenantTurns, Waiting
from harness.paths import DOCS, ROOT

NOTHING = dict.fromkeys(STATIONS, 0.0)
FREE = Demand(job=NOTHING, chunk=NOTHING)
CHIP = Chip(slots=16, seconds=0.5, start=2.0)
SMALL = Layout(cells=1, generators=3, servers=dict.fromkeys(STATIONS, 1), window=96)


def turns() -> Waiting[Job]:
    return TenantTurns(16, lambda job: 4)


def queue(servers: int, *, load: float, constant: bool, requests: int = 60_000) -> Station:
    """Returns a station after requests that came at random times and took one second, exactly or on average."""
    env, numbers = simpy.Environment(), random.Random(3)
    station = Station(env, "station", servers)

    def arrive() -> simpy.events.ProcessGenerator:
        for _ in range(requests):
            yield env.timeout(numbers.expovariate(load * servers))
            station.serve(1.0 if constant else numbers.expovariate(1.0))

    env.process(arrive())
    env.run()
    return station


def test_waiting_time_of_one_server_is_that_of_theory() -> None:
    station = queue(1, load=0.7, constant=True)
    # M/D/1, by Pollaczek and Khinchine.
    assert station.waited / station.requests == pytest.approx(0.7 / (2 * 0.3), rel=0.05)
    assert station.use == pytest.approx(0.7, rel=0.02)


def test_waiting_time_of_several_servers_is_that_of_theory() -> None:
    servers, load = 4, 0.8
    offered = servers * load
    # M/M/c, by Erlang's formula.
    last = offered**servers / math.factorial(servers) / (1 - load)
    waits = last / (sum(offered**k / math.factorial(k) for k in range(servers)) + last)
    station = queue(servers, load=load, constant=False)
    assert station.waited / station.requests == pytest.approx(waits / (servers * (1 - load)), rel=0.08)


def test_ten_thousand_jobs_of_a_tenant_delay_the_job_of_another_by_one_turn_at_most() -> None:
    waiting: TenantTurns[str] = TenantTurns(16, lambda item: 4)
    for _ in range(4 * 10_000):
        waiting.add("one", "one")
    taken = [waiting.take() for _ in range(7)]
    for _ in range(4):
        waiting.add("other", "other")
    taken = [waiting.take() for _ in range(12)]
    assert taken.index("other") <= 4  # Chunks of 4 candidates, of which a turn has 4.
    assert taken[taken.index("other") :][:4] == ["other"] * 4
    assert len(waiting) == 40_000 - 7 - 8


def test_tenants_with_work_get_equal_shares_whatever_their_number_of_jobs() -> None:
    waiting: TenantTurns[int] = TenantTurns(16, lambda tenant: 4)
    for tenant, items in enumerate((1000, 100, 200)):
        for _ in range(items):
            waiting.add(tenant, tenant)
    taken = [waiting.take() for _ in range(120)]
    assert {tenant: taken.count(tenant) for tenant in range(3)} == {0: 40, 1: 40, 2: 40}


def wait_behind_others(waiting: type[FirstCome[Job]] | None) -> float:
    """Returns how long a job waits for a generator that another tenant's 10,000 jobs have to themselves."""
    layout = replace(SMALL, generators=1, window=32, open_jobs=20_000)
    busy = Fleet(layout, CHIP, FREE, waiting=waiting or turns, seed=1)
    busy.env.process(busy.burst(0.0, 10_000, 4))
    busy.run(10.25)
    busy.submit("other", 4)
    busy.run(6000)
    [job] = [job for job in busy.jobs if job.tenant == "other"]
    assert job.began is not None
    return job.began - job.arrived


def test_job_waits_for_what_is_sent_and_a_turn_and_not_for_the_other_jobs() -> None:
    # 16 candidates are drawn at a time, and as many more are in the queue; then there is a turn of 16 candidates.
    assert wait_behind_others(None) <= 3 * CHIP.seconds
    assert wait_behind_others(FirstCome) == pytest.approx(10_000 * CHIP.seconds - 10, rel=0.01)


@pytest.mark.parametrize("newest", [True, False])
def test_no_job_is_lost_in_a_rollout_or_with_a_zone(newest: bool) -> None:
    cost = dict.fromkeys(STATIONS, 0.001)
    layout = replace(SMALL, binds_to_newest=newest)
    harmed = Fleet(layout, CHIP, Demand(job=cost, chunk=cost), waiting=turns, seed=2)
    for process in (harmed.burst(0, 300, 4), harmed.lose_zone(3.1, 6.0), harmed.roll_out(12.2, 3)):
        harmed.env.process(process)
    harmed.run(13)
    harmed.env.process(harmed.burst(2, 300, 4))
    harmed.run(400)
    [cell] = harmed.cells
    assert [job.done for job in harmed.jobs] == [4] * 600
    assert all(job.ended is not None for job in harmed.jobs)
    assert cell.lost == 4  # All places of one generator were full.
    assert cell.open == 0
    assert {lane.sent for lane in cell.lanes.values()} == {0}
    assert {worker.revision for worker in cell.workers} == {1}
    assert {worker.free for worker in cell.workers} == {CHIP.places}
    # What was generated, and the half chunk that was lost of each place.
    assert 600 * 4 * CHIP.seconds < cell.busy < (600 * 4 + 4) * CHIP.seconds


def test_cell_refuses_jobs_beyond_its_limit() -> None:
    full = Fleet(replace(SMALL, open_jobs=5), CHIP, FREE, waiting=turns, seed=1)
    full.env.process(full.burst(0, 8, 4))
    full.run(30)
    assert (len(full.jobs), full.refused) == (5, 3)


def test_every_scenario_is_the_same_for_the_same_seed() -> None:
    demand = Demand(job=dict.fromkeys(STATIONS, 0.002), chunk=dict.fromkeys(STATIONS, 0.001))
    size = replace(fleet.QUICK, generators=6, seconds=24, burst=60)
    for scenario in fleet.SCENARIOS:
        first, second = (fleet.describe(fleet.simulate(scenario, size, demand)) for _ in range(2))
        assert first == second
        assert first["jobs"] != "0"
    other = fleet.describe(fleet.simulate(fleet.SCENARIOS[1], size, demand, seed=5))
    assert other != fleet.describe(fleet.simulate(fleet.SCENARIOS[1], size, demand))


def test_page_has_the_numbers_of_the_measured_costs() -> None:
    page, costs = (DOCS / "scale.md").read_text(encoding="utf-8"), Costs.load()
    for place, lines in zip(fleet.PLACES[:2], (cost_tables(costs), planning_tables(costs)), strict=True):
        written = "\n".join((fleet.BEGIN.format(place), *lines, fleet.END.format(place)))
        assert written in page, f"python -m benchmarks.fleet --write docs/scale.md writes {place}"
    assert f"\n{fleet.BEGIN.format('fleet')}\n" in page


def test_costs_are_the_same_after_they_were_saved(tmp_path: Path) -> None:
    costs = Costs.load(COSTS)
    costs.save(tmp_path / "costs.json")
    assert Costs.load(tmp_path / "costs.json") == costs


def test_statements_rows_and_commits_are_counted() -> None:
    counted, engine = CollectorRegistry(), sqlalchemy.create_engine("sqlite://")
    count(counted, engine)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE things (number INTEGER)"))
        connection.execute(
            sqlalchemy.text("INSERT INTO things VALUES (:number)"),
            [{"number": number} for number in range(3)],
        )
        connection.execute(sqlalchemy.text("UPDATE things SET number = 0 WHERE number < 2"))
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text("SELECT * FROM things"))
    engine.dispose()
    assert counted.get_sample_value("rows_total", {"verb": "INSERT"}) == 3
    assert counted.get_sample_value("rows_total", {"verb": "UPDATE"}) == 2
    assert counted.get_sample_value("statements_total", {"verb": "SELECT"}) == 1
    assert counted.get_sample_value("commits_total") == 1


@pytest.mark.server
@pytest.mark.slow
def test_costs_are_measured() -> None:
    command = [sys.executable, "-m", "benchmarks.cost", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=580)
    assert done.returncode == 0, done.stderr
    for name in ("database: commits", "broker: messages", "store: PUT", "processor: gateway"):
        assert name in done.stdout
