"""A simulated fleet: cells with a gateway's processes, a database, a broker, a store, and generators.

What takes time is what was measured: processor time at the stations (`costs.py`), and that of a chunk in a generator.
Encoders, decoders and rankers are left out: they scale as generators do, and the costs include their requests.
The costs of a job and its chunks are divided over four phases, by the shares in `parts.py`.
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from random import Random
from typing import Any

import simpy

from benchmarks.scale.costs import CANDIDATES_IN_CHUNK
from benchmarks.scale.parts import (
    ACCEPTING,
    ENDING,
    RETURNING,
    SENDING,
    STATIONS,
    Chip,
    Demand,
    Happening,
    Job,
    Layout,
    Shares,
    Worker,
)
from benchmarks.scale.stations import Station
from benchmarks.scale.turns import Waiting


class Lane:
    """The chunks of one revision in a cell: those that wait, and those in the queues."""

    def __init__(self, waiting: Waiting[Job]) -> None:
        self.waiting = waiting
        self.queued: deque[Job] = deque()
        """Chunks in the broker's queue."""
        self.sent = 0
        """Candidates that were sent and have not come back."""
        self.workers: deque[Worker] = deque()
        """Generators with free places."""
        self.most_waiting = 0
        self.most_queued = 0


class Cell:
    """A cell: stations, generators, and the chunks of its jobs."""

    def __init__(
        self,
        env: simpy.Environment,
        *,
        layout: Layout,
        chip: Chip,
        demand: Demand,
        waiting: Callable[[], Waiting[Job]],
        random: Random,
    ) -> None:
        self.env = env
        self.stations = {name: Station(env, name, layout.servers[name]) for name in STATIONS}
        self.workers = [Worker(zone=number % layout.zones) for number in range(layout.generators)]
        self.lanes: dict[int, Lane] = {}
        self.open = 0
        self.busy = 0.0
        """Seconds of all places in which chunks were generated."""
        self.lost = 0
        """Chunks that a lost generator was working on."""
        self._layout = layout
        self._chip = chip
        self._demand = demand
        self._new_waiting = waiting
        self._random = random
        self._gone: set[int] = set()
        """Revisions that no generator has any more."""
        for worker in self.workers:
            self.ready(worker, 0)

    def lane(self, revision: int) -> Lane:
        """Returns the lane of a revision."""
        if revision not in self.lanes:
            self.lanes[revision] = Lane(self._new_waiting())
        return self.lanes[revision]

    def ready(self, worker: Worker, revision: int) -> None:
        """A generator takes work from now on."""
        worker.revision, worker.stopping, worker.free = revision, False, self._chip.places
        self.lane(revision).workers.append(worker)
        self._start(revision)

    def run(self, job: Job) -> Happening:
        """Runs a job, which counts as accepted when its transaction is committed."""
        yield from self._visit(self._demand.job, ACCEPTING)
        job.accepted = self.env.now
        job.revision = self._bind()
        lane = self.lane(job.revision)
        for _ in range(job.chunks):
            lane.waiting.add(job.tenant, job)
        lane.most_waiting = max(lane.most_waiting, len(lane.waiting))
        self._send(job.revision)

    def lose(self, worker: Worker) -> None:
        """A generator is gone; its chunks are delivered again at once, as RabbitMQ does when a connection ends."""
        self._withdraw(worker)
        for process in list(worker.running):
            process.interrupt()

    def drain(self, worker: Worker) -> Happening:
        """A generator takes no more chunks, and finishes those that it has."""
        revision = worker.revision
        self._withdraw(worker)
        if all(other.stopping for other in self.workers if other.revision == revision):
            self._rebind(revision)
        if worker.running:
            worker.empty = self.env.event()
            yield worker.empty

    def _withdraw(self, worker: Worker) -> None:
        if worker.free:
            self.lane(worker.revision).workers.remove(worker)
        worker.stopping, worker.free = True, 0

    def _bind(self) -> int:
        """Returns the revision that a new job gets."""
        if self._layout.binds_to_newest:
            return max((worker.revision for worker in self.workers if not worker.stopping), default=0)
        ready = [worker.revision for worker in self.workers if not worker.stopping]
        return self._random.choice(ready or [0])

    def _rebind(self, revision: int) -> None:
        """Binds chunks whose revision has no generator any more to the newest."""
        newest = max(self.lanes)
        if newest == revision:
            return
        self._gone.add(revision)
        old, new = self.lane(revision), self.lane(newest)
        while old.queued:
            self._queue(old.queued.popleft(), revision)
        while len(old.waiting):
            job = old.waiting.take()
            new.waiting.add(job.tenant, job)
        self._send(newest)

    def _send(self, revision: int) -> None:
        lane = self.lane(revision)
        while len(lane.waiting) and lane.sent + CANDIDATES_IN_CHUNK <= self._layout.window:
            lane.sent += CANDIDATES_IN_CHUNK
            job = lane.waiting.take()
            if job.sent is None:
                job.sent = self.env.now
            self.env.process(self._send_chunk(job, revision))

    def _send_chunk(self, job: Job, revision: int) -> Happening:
        yield from self._visit(self._demand.chunk, SENDING)
        self._queue(job, revision)

    def _queue(self, job: Job, revision: int, *, first: bool = False) -> None:
        """Puts a chunk that was sent for a revision into a queue: the newest one's, if the revision is gone."""
        if revision in self._gone:
            self.lane(revision).sent -= CANDIDATES_IN_CHUNK
            revision = max(self.lanes)
            self.lane(revision).sent += CANDIDATES_IN_CHUNK
        lane = self.lane(revision)
        if first:
            lane.queued.appendleft(job)
        else:
            lane.queued.append(job)
        lane.most_queued = max(lane.most_queued, len(lane.queued))
        self._start(revision)

    def _start(self, revision: int) -> None:
        """Gives chunks to generators with free places."""
        lane = self.lane(revision)
        while lane.queued and lane.workers:
            worker = lane.workers.popleft()
            worker.free -= 1
            if worker.free:
                lane.workers.append(worker)  # Who has just taken a chunk is the last to take the next one.
            job = lane.queued.popleft()
            worker.running[self.env.process(self._generate(job, worker, revision))] = None

    def _generate(self, job: Job, worker: Worker, revision: int) -> Happening:
        began = self.env.now
        if job.began is None:
            job.began = began
        me = self.env.active_process
        assert me is not None
        try:
            yield self.env.timeout(self._chip.seconds)
        except simpy.Interrupt:
            self.lost += 1
            worker.running.pop(me)
            self.busy += self.env.now - began
            self._queue(job, revision, first=True)
            return
        worker.running.pop(me)
        self.busy += self.env.now - began
        lane = self.lane(revision)
        if not worker.stopping:
            worker.free += 1
            if worker.free == 1:
                lane.workers.append(worker)
        elif worker.empty is not None and not worker.running:
            worker.empty.succeed()
            worker.empty = None
        self._start(revision)
        yield from self._visit(self._demand.chunk, RETURNING)
        lane.sent -= CANDIDATES_IN_CHUNK
        self._send(revision)
        job.done += 1
        if job.done == job.chunks:
            yield from self._visit(self._demand.job, ENDING)
            job.ended = self.env.now
            self.open -= 1

    def _visit(self, costs: Mapping[str, float], shares: Shares) -> Iterator[simpy.Event]:
        """Yields the visits of stations, each with its share of the costs."""
        for name, share in shares.items():
            yield self.stations[name].serve(share * costs[name])


class Fleet:
    """All cells, and the jobs that came."""

    def __init__(
        self,
        layout: Layout,
        chip: Chip,
        demand: Demand,
        *,
        waiting: Callable[[], Waiting[Job]],
        seed: int,
    ) -> None:
        """Makes the cells; nothing runs before `run`.

        Args:
            layout: how many there are of everything.
            chip: the generators' accelerator.
            demand: the costs of jobs.
            waiting: makes what says in which order chunks are sent.
            seed: all random numbers follow from it.
        """
        self.env = simpy.Environment()
        self.layout = layout
        self.chip = chip
        self._random = Random(seed)
        parts: dict[str, Any] = {
            "layout": layout,
            "chip": chip,
            "demand": demand,
            "waiting": waiting,
            "random": self._random,
        }
        self.cells = [Cell(self.env, **parts) for _ in range(layout.cells)]
        self.jobs: list[Job] = []
        self.refused = 0

    def run(self, seconds: float) -> None:
        """Runs until this time."""
        self.env.run(until=seconds)

    def submit(self, tenant: Hashable, chunks: int) -> None:
        """A job comes, to the cell that its number chooses; a cell with too many open jobs refuses it."""
        cell = self.cells[self._random.randrange(len(self.cells))]
        if cell.open >= self.layout.open_jobs:
            self.refused += 1
            return
        job = Job(tenant=tenant, chunks=chunks, arrived=self.env.now)
        self.jobs.append(job)
        cell.open += 1
        self.env.process(cell.run(job))

    def arrivals(self, rate: float, tenants: int, chunks: int) -> Happening:
        """Jobs of many tenants come at random times (a Poisson process), `rate` in a second."""
        while True:
            yield self.env.timeout(self._random.expovariate(rate))
            self.submit(self._random.randrange(tenants), chunks)

    def single_jobs(self, begin: float, every: float, chunks: int) -> Happening:
        """A tenant's jobs come one by one, at equal intervals."""
        yield self.env.timeout(begin)
        while True:
            self.submit("single", chunks)
            yield self.env.timeout(every)

    def burst(self, at: float, jobs: int, chunks: int) -> Happening:
        """One tenant's jobs come all at once."""
        yield self.env.timeout(at)
        for _ in range(jobs):
            self.submit("burst", chunks)

    def lose_zone(self, at: float, until: float) -> Happening:
        """The generators of a zone are gone for a while, then start anew."""
        yield self.env.timeout(at)
        gone = [(cell, worker) for cell in self.cells for worker in cell.workers if worker.zone == 0]
        for cell, worker in gone:
            cell.lose(worker)
        yield self.env.timeout(until - at + self.chip.start)
        for cell, worker in gone:
            cell.ready(worker, worker.revision)

    def roll_out(self, at: float, waves: int) -> Happening:
        """All generators get the next revision, in waves; each wave begins when the one before is ready."""
        yield self.env.timeout(at)
        for wave in range(waves):
            yield self.env.all_of(
                [
                    self.env.process(self._replace(cell, worker))
                    for cell in self.cells
                    for worker in cell.workers[wave::waves]
                ]
            )

    def _replace(self, cell: Cell, worker: Worker) -> Happening:
        yield from cell.drain(worker)
        yield self.env.timeout(self.chip.start)
        cell.ready(worker, worker.revision + 1)
