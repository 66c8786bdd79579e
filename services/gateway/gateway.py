"""The gateway without its gRPC service: the parts that work on jobs, and their threads."""

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Final

from smalti.errors import StoreUnavailableError, UnavailableError
from smalti.services.gateway.batches import Batches
from smalti.services.gateway.database.clock import DatabaseClock, to_microseconds
from smalti.services.gateway.database.presence import News, Role
from smalti.services.gateway.database.tables import JobState
from smalti.services.gateway.files import FILES_AT_A_TIME, FileContents, FileRepository, remove_due
from smalti.services.gateway.jobs.context import GatewayContext
from smalti.services.gateway.jobs.objects import write_marker
from smalti.services.gateway.jobs.observer import JobObserver, JobOutcome
from smalti.services.gateway.jobs.repository import JobRepository, JobSnapshot
from smalti.services.gateway.jobs.sizes import JobSizes
from smalti.services.gateway.jobs.tenants import forget_usage
from smalti.services.gateway.jobs.watchers import WatcherHub
from smalti.services.gateway.models import HelloBuffer
from smalti.services.gateway.webhooks import Deliveries
from smalti.services.gateway.work.binding import Binding
from smalti.services.gateway.work.dispatch import Dispatcher
from smalti.services.gateway.work.events import EventHandler
from smalti.services.gateway.work.fan_in import FanIn
from smalti.services.gateway.work.loops import Loop
from smalti.services.gateway.work.progress import ProgressBuffer
from smalti.services.gateway.work.refining import Refining
from smalti.services.gateway.work.sweeper import BATCH_SIZE, Sweeper
from smalti.storage import sweep

log = logging.getLogger(__name__)

PROGRESS_DELAY_SECONDS: Final = 0.1
"""Time for which progress is collected before it is stored."""
STORE_TASKS_DELAY_SECONDS: Final = 0.2
"""Time for which store tasks are collected before they run, since calls of clients come first."""
MAX_CALLS: Final = 16
"""Maximum number of blocking calls that run for clients at the same time."""
STOP_SECONDS: Final = 5.0
EXPIRY_INTERVAL_SECONDS: Final = 3600.0
"""Interval between checks for expired objects."""
CLOCK_SECONDS: Final = 1.0
"""Interval between questions for the database's time, which show whether it answers."""
MARKER_SECONDS: Final = 1.0
"""Time for which CancelJob waits for the store to take the marker."""
MAX_MARKERS: Final = 256
"""Markers that are about to be written for callers; the store tasks write the others."""
MODELS_SECONDS: Final = 1.0
"""Interval between looks at which models can be drawn."""
HELLO_DELAY_SECONDS: Final = 0.05
"""Time for which hellos of new workers are collected before they are stored."""
WEBHOOK_SECONDS: Final = 1.0
"""Interval between checks for notices that are due; those of jobs that end here are sent at once."""
FILES_SECONDS: Final = 10.0
"""Interval between checks for files to delete; those that are deleted by a call to this gateway are at once."""
RECOUNT_SECONDS: Final = 10.0
"""Interval between checks of the counters of tenants."""


class _Wakeups(JobObserver):
    """Wakes the loops that have work after a change."""

    def __init__(self) -> None:
        self.to_send = threading.Event()
        self.store_tasks = threading.Event()
        self.webhooks = threading.Event()

    def created(self, job_id: str) -> None:
        self.to_send.set()

    def chosen(self, job_id: str) -> None:
        self.to_send.set()

    def ended(self, outcome: JobOutcome) -> None:
        self.to_send.set()
        self.store_tasks.set()
        self.webhooks.set()

    def deleted(self, job_id: str) -> None:
        self.store_tasks.set()


class Gateway:
    """Jobs from their acceptance to their end. `start` starts the threads; `close` ends them."""

    def __init__(self, context: GatewayContext) -> None:
        """Creates the parts; nothing runs before `start`."""
        self.context = context
        self.watchers = WatcherHub(JobSizes(context.database, context.catalogue).side)
        if context.rows is not None:
            context.rows.hear = self.watchers.rows_drawn
        self.hellos = HelloBuffer(context.database, context.clock, context.elapsed)
        self.threads = ThreadPoolExecutor(MAX_CALLS, thread_name_prefix="call")
        """Runs calls of the database for clients."""
        self.store_threads = ThreadPoolExecutor(MAX_CALLS, thread_name_prefix="store")
        """Reads files for clients; apart, so that a store that hangs does not hold up the database's calls."""
        self.policy_threads = ThreadPoolExecutor(MAX_CALLS, thread_name_prefix="asking")
        """Asks the operator's policy for clients; apart, for the same reason."""
        self._marker_threads = ThreadPoolExecutor(MAX_CALLS, thread_name_prefix="marker")
        self._markers = threading.BoundedSemaphore(MAX_MARKERS)
        wakeups = _Wakeups()
        context.events.subscribe(wakeups)
        context.events.subscribe(self.watchers)
        expiring, counting = threading.Event(), threading.Event()
        first_times = {Role.EXPIRING: expiring, Role.SWEEPING: counting}
        for first_time in first_times.values():
            first_time.set()  # The first checks are at the start, or when this gateway gets the role.
        if context.presence is not None:
            context.presence.news = News(
                changed=self.watchers.changed,
                freed=lambda chunks: wakeups.to_send.set(),
                gained=lambda role: first_times[role].set() if role in first_times else None,
            )
        self.batches = Batches(context)
        self.jobs = JobRepository(context)
        self.progress = ProgressBuffer(context)
        refining = Refining(context)
        self.fan_in = FanIn(context, refining)
        self.events = EventHandler(
            context,
            fan_in=self.fan_in,
            refining=refining,
            progress=self.progress,
            watchers=self.watchers,
            of_shards=self.batches.events.apply,
        )
        self.dispatcher = Dispatcher(context, self.progress)
        self.sweeper = Sweeper(context, self.fan_in)
        self.deliveries = Deliveries(
            context.database,
            clock=context.clock,
            settings=context.webhooks,
            ended=wakeups.webhooks.set,
        )
        self.binding = Binding(context)
        self.files = FileRepository(context)
        self.files_due = threading.Event()
        """Wakes what deletes the contents of files."""
        self._to_send = wakeups.to_send
        interval = context.settings.sweep
        self._loops = (
            Loop("sending", self.send, seconds=interval, wake=wakeups.to_send),
            Loop(
                "progress",
                self.progress.store,
                seconds=interval,
                wake=self.progress.filled,
                delay=PROGRESS_DELAY_SECONDS,
            ),
            Loop("sweeping", self.sweep, seconds=interval),
            Loop(
                "store tasks",
                self.run_store_tasks,
                seconds=interval,
                wake=wakeups.store_tasks,
                delay=STORE_TASKS_DELAY_SECONDS,
            ),
            Loop(
                "models",
                self.look_at_models,
                seconds=MODELS_SECONDS,
                wake=self.hellos.filled,
                delay=HELLO_DELAY_SECONDS,
            ),
            Loop("webhooks", self.send_notices, seconds=WEBHOOK_SECONDS, wake=wakeups.webhooks),
            Loop("files", self.remove_files, seconds=FILES_SECONDS, wake=self.files_due),
            Loop("counting", self.recount, seconds=RECOUNT_SECONDS, wake=counting),
            Loop("clock", self._look_at_clock, seconds=CLOCK_SECONDS),
            Loop("expiring", self.expire_objects, seconds=EXPIRY_INTERVAL_SECONDS, wake=expiring),
            *self.batches.loops(),
        )
        self._started = False
        self._reclaimed = False

    @property
    def healthy(self) -> bool:
        """Whether all threads run, once they are started."""
        presence = self.context.presence
        return not self._started or (
            all(loop.alive for loop in self._loops) and (presence is None or presence.alive)
        )

    @property
    def ready(self) -> bool:
        """Whether the database has answered lately; without it, every call is UNAVAILABLE."""
        return not self._started or self.context.database.answers

    def start(self) -> None:
        """Starts the threads."""
        self._started = True
        if self.context.presence is not None:
            self.context.presence.start()
        if self.context.rows is not None:
            self.context.rows.start()
        for loop in self._loops:
            loop.start()

    def _look_at_clock(self) -> None:
        if isinstance(self.context.clock, DatabaseClock):
            self.context.clock.synchronize()
        else:
            self.context.database.time()

    def versions(self, job_ids: Sequence[str]) -> dict[str, int]:
        """Returns the versions of jobs and batches by their ids; those that do not exist are left out."""
        found = self.jobs.versions(job_ids)
        others = [each for each in job_ids if each not in found]
        return found | (self.batches.repository.versions(others) if others else {})

    def send(self) -> None:
        """Sends waiting chunks, then chunks whose leases have expired; raises `UnavailableError`."""
        if not self._reclaimed:
            self.dispatcher.reclaim()
            self._reclaimed = True
        self.dispatcher.send_waiting()
        self.dispatcher.send_again()

    def sweep(self) -> None:
        """Expires, removes, and ends jobs that are due; raises `UnavailableError`."""
        if not self.context.holds(Role.SWEEPING):
            return
        # Only the last one needs the store.
        for step in (self.sweeper.expire, self.sweeper.remove, self.sweeper.finish):
            while step() >= BATCH_SIZE:
                pass

    def look_at_models(self) -> None:
        """Stores hellos, finds out what can be drawn, and binds jobs anew; raises `UnavailableError`."""
        self.hellos.store()
        before = {state.card.revision: state.slots for state in self.context.catalogue.fleet.available}
        now = {state.card.revision: state.slots for state in self.context.catalogue.refresh().available}
        bound = 0
        if self.context.holds(Role.SWEEPING):
            self.hellos.forget()
            bound = self.binding.bind_anew()
        if bound or now != before:
            self._to_send.set()
            self.batches.signals.to_send.set()

    def recount(self) -> None:
        """Corrects the counters of tenants that have drifted; raises `UnavailableError`."""
        if self.context.holds(Role.SWEEPING):
            self.jobs.recount()

    def run_store_tasks(self) -> None:
        """Runs the tasks in the object store that are due; raises `UnavailableError`."""
        while self.context.holds(Role.STORE_TASKS) and self.sweeper.run_store_tasks() >= BATCH_SIZE:
            pass

    def remove_files(self) -> None:
        """Deletes files whose time is over, with their contents; raises `UnavailableError`."""
        contents = FileContents(self.context.store)
        while self.context.holds(Role.STORE_TASKS) and remove_due(self.files, contents) >= FILES_AT_A_TIME:
            pass

    def send_notices(self) -> None:
        """Sends notices to webhooks that are due; raises `UnavailableError`."""
        if self.context.holds(Role.WEBHOOKS):
            self.deliveries.send_due()

    def expire_objects(self) -> None:
        """Lets the store delete old objects, or deletes them if the store has no expiry; and removes old usage."""
        if not self.context.holds(Role.EXPIRING):
            return
        self.context.catalogue.forget()
        forget_usage(self.context.database, to_microseconds(self.context.clock()))
        store, days = self.context.store, self.context.expiry_days
        if not store.expire_after(days) and days:
            now = datetime.fromtimestamp(self.context.clock(), UTC)
            if removed := sweep(store, timedelta(days=days), intermediate=False, now=now):
                log.info("deleted %d objects older than %d days", removed, days)

    def mark(self, snapshot: JobSnapshot) -> "Future[None] | None":
        """Begins to notify the stages that a job was cancelled, which frees slots.

        Returns:
            What tells when it is done; None if there is nothing to do, or if the store is slow: then the store task of
            the job notifies them later.
        """
        job = snapshot.job
        if job.state is not JobState.CANCELLED or not self._markers.acquire(blocking=False):
            return None
        return self._marker_threads.submit(self._mark, job.id, job.state)

    def _mark(self, job_id: str, state: JobState) -> None:
        try:
            write_marker(self.context.store, job_id, state)
        except StoreUnavailableError as error:
            log.warning("the stages are notified later: %s", error, extra={"job": job_id})
        finally:
            self._markers.release()

    def stop(self) -> None:
        """Stops the threads after their current call; the next start continues the rest."""
        for loop in self._loops:
            if loop.alive:
                loop.stop(STOP_SECONDS)
        if self.context.rows is not None:
            self.context.rows.stop()
        if self.context.presence is not None:
            self.context.presence.stop(STOP_SECONDS)
        self._started = False

    def close(self) -> None:
        """Stops the threads, stores the progress that was collected last, and closes the database."""
        self.stop()
        with suppress(UnavailableError):
            self.progress.store()
        self.close_threads()
        self.context.database.close()

    def close_threads(self) -> None:
        """Ends the thread pools, and notices that are on their way; the database stays open."""
        self.deliveries.stop()
        self.threads.shutdown(cancel_futures=True)
        self.store_threads.shutdown(cancel_futures=True)
        self.policy_threads.shutdown(cancel_futures=True)
        self._marker_threads.shutdown(cancel_futures=True)
        self.fan_in.close()
        self.context.policy.close()
