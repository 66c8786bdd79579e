"""The gateway without its network: everything that it is made of, put together, and its threads."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Final

from smalti.errors import StoreUnavailableError, UnavailableError
from smalti.queue import Publisher
from smalti.registry.spec import ModelSpec
from smalti.services.gateway.database.clock import Clock, SystemClock
from smalti.services.gateway.database.connection import Database
from smalti.services.gateway.database.tables import State
from smalti.services.gateway.jobs.hub import Hub
from smalti.services.gateway.jobs.observer import JobEnding
from smalti.services.gateway.jobs.repository import Jobs, Snapshot
from smalti.services.gateway.settings import GatewaySettings
from smalti.services.gateway.work.dispatch import Dispatcher
from smalti.services.gateway.work.events import Events
from smalti.services.gateway.work.fan_in import FanIn
from smalti.services.gateway.work.loops import Loop
from smalti.services.gateway.work.progress import ProgressBuffer
from smalti.services.gateway.work.sweeper import MAX_AT_ONCE, Sweeper, mark
from smalti.storage import ObjectStore, sweep
from smalti.telemetry import Metrics

log = logging.getLogger(__name__)

STORE_SECONDS: Final = 0.1
"""How long what is heard of chunks is collected before it is stored."""
TIDY_SECONDS: Final = 0.2
"""How long what is to be done in the store is collected: whoever waits for a job comes first."""
CALLS: Final = 16
"""Calls of the database and the store that clients wait for, at the same time."""
STOP_SECONDS: Final = 5.0
EXPIRY_SECONDS: Final = 3600.0
"""Between two looks for objects that have expired."""
MARK_SECONDS: Final = 1.0
"""How long whoever cancels a job waits for the store, which may be away."""


class _JobEvents:
    """Tells the loops, the hub and the metrics of changes."""

    def __init__(self, hub: Hub, metrics: Metrics | None) -> None:
        self.to_send = threading.Event()
        self.to_do = threading.Event()
        self._hub = hub
        self._metrics = metrics

    def created(self, job_id: str) -> None:
        self.to_send.set()

    def changed(self, job_id: str) -> None:
        self._hub.changed(job_id)

    def ended(self, ending: JobEnding) -> None:
        self.to_send.set()
        self.to_do.set()
        self._hub.ended(ending.job_id)
        if self._metrics:
            outcome = ending.state.value
            self._metrics.add("jobs_total", outcome=outcome, reason=ending.reason)
            self._metrics.observe("job_seconds", ending.seconds, outcome=outcome)
            if ending.state is State.CANCELLED:
                self._metrics.add("cancelled_total", where="running" if ending.running else "waiting")

    def lost(self, chunks: int) -> None:
        if self._metrics:
            self._metrics.add("lease_losses_total", chunks)


class Gateway:
    """Jobs, from their acceptance to their end; `start` lets it work, `close` ends it."""

    def __init__(
        self,
        database: Database,
        store: ObjectStore,
        outlet: Publisher,
        spec: ModelSpec,
        settings: GatewaySettings,
        *,
        clock: Clock | None = None,
        metrics: Metrics | None = None,
        expiry_days: int = 0,
    ) -> None:
        """Puts it together.

        Args:
            database: where jobs are; its tables must be there.
            store: where objects are.
            outlet: where messages go.
            spec: the model.
            settings: its settings.
            clock: says what time it is; None is the machine's.
            metrics: counts jobs and losses.
            expiry_days: the days after which objects of jobs are removed, whatever the database says; 0 keeps them.
        """
        clock = clock or SystemClock()
        self.database = database
        self.store = store
        self.spec = spec
        self.settings = settings
        self.clock = clock
        self.hub = Hub(spec.side)
        self.threads = ThreadPoolExecutor(CALLS, thread_name_prefix="call")
        self._markers = ThreadPoolExecutor(CALLS, thread_name_prefix="marker")
        bell = self._bell = _JobEvents(self.hub, metrics)
        self.jobs = Jobs(database, spec, settings, bell, clock)
        self.ledger = ProgressBuffer(database, spec.side, settings, bell, clock)
        self.fan_in = FanIn(database, store, bell, clock)
        self.events = Events(database, self.fan_in, self.ledger, spec.side, settings, bell, self.hub, clock)
        self.dispatcher = Dispatcher(database, outlet, store, settings, self.ledger, bell, clock)
        self.sweeper = Sweeper(database, store, self.fan_in, bell, clock)
        self._expiry_days = expiry_days
        expiring = threading.Event()
        expiring.set()  # The first time at the start.
        self._loops = (
            Loop("sending", self.send, seconds=settings.sweep, wake=bell.to_send),
            Loop(
                "progress",
                self.ledger.store,
                seconds=settings.sweep,
                wake=self.ledger.filled,
                delay=STORE_SECONDS,
            ),
            Loop("sweeping", self.sweep, seconds=settings.sweep),
            Loop("tidying", self.tidy, seconds=settings.sweep, wake=bell.to_do, delay=TIDY_SECONDS),
            Loop("expiring", self.expire_objects, seconds=EXPIRY_SECONDS, wake=expiring),
        )
        self._started = False
        self._reclaimed = False

    @property
    def healthy(self) -> bool:
        """Whether everything that has to be done is being done."""
        return not self._started or all(loop.alive for loop in self._loops)

    @property
    def failure(self) -> BaseException | None:
        """Why it is not; the log has the cause."""
        return None

    def start(self) -> None:
        """Begins to send, to sweep, and to tidy."""
        self._started = True
        for loop in self._loops:
            loop.start()

    def send(self) -> None:
        """Sends what is to be sent; raises `UnavailableError` when it cannot."""
        if not self._reclaimed:
            self.dispatcher.reclaim()
            self._reclaimed = True
        self.dispatcher.send_waiting()  # First: it is what somebody waits for.
        self.dispatcher.send_again()

    def sweep(self) -> None:
        """Ends and removes jobs whose time has come; raises `UnavailableError` when it cannot."""
        for step in (self.sweeper.expire, self.sweeper.finish, self.sweeper.remove):
            while step() >= MAX_AT_ONCE:
                pass

    def tidy(self) -> None:
        """Does in the store what is due there."""
        while self.sweeper.do_chores() >= MAX_AT_ONCE:
            pass

    def expire_objects(self) -> None:
        """Lets the store remove old objects, or does it where the store cannot."""
        if not self.store.expire_after(self._expiry_days) and self._expiry_days:
            old = timedelta(days=self._expiry_days)
            now = datetime.fromtimestamp(self.clock(), UTC)
            if removed := sweep(self.store, old, intermediate=False, now=now):
                log.info("%d objects were older than %d days", removed, self._expiry_days)

    def cancel(self, job_id: str) -> Snapshot:
        """Cancels a job, and tells the stages; one that has ended stays as it is. Raises `JobNotFoundError`."""
        snapshot = self.jobs.cancel(job_id)
        if snapshot.job.state is State.CANCELLED:
            # At once, not when its turn comes: the slots are to be free. If it takes too long, its turn comes.
            marking = self._markers.submit(mark, self.store, job_id, snapshot.job.state)
            try:
                marking.result(MARK_SECONDS)
            except (TimeoutError, StoreUnavailableError) as error:
                log.warning("the stages are told later: %s", error, extra={"job": job_id})
        return snapshot

    def stop(self) -> None:
        """Ends what it does by itself; what is begun is finished, and what is left is found at the next start."""
        for loop in self._loops:
            if loop.alive:
                loop.stop(STOP_SECONDS)
        self._started = False

    def close(self) -> None:
        """Ends its threads, and stores what was heard last."""
        self.stop()
        with suppress(UnavailableError):
            self.ledger.store()
        self.threads.shutdown(cancel_futures=True)
        self._markers.shutdown(cancel_futures=True)
        self.fan_in.close()
        self.database.close()
