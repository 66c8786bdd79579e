"""What is done when its time has come: jobs expire and are deleted, and the object store is kept tidy."""

import json
import logging
from collections.abc import Callable, Sequence
from typing import Final

from sqlalchemy import delete, select, update

from smalti.errors import StoreUnavailableError
from smalti.services.gateway.database.clock import Clock, to_microseconds
from smalti.services.gateway.database.connection import Database
from smalti.services.gateway.database.tables import IS_OPEN, OPEN, Chore, Job, State, Task
from smalti.services.gateway.jobs.lifecycle import end, lock, lock_open, remove
from smalti.services.gateway.jobs.observer import JobObserver
from smalti.services.gateway.work.fan_in import FanIn
from smalti.storage import JobKeys, ObjectStore, is_intermediate

log = logging.getLogger(__name__)

MAX_AT_ONCE: Final = 100
"""Jobs, or chores, that are looked at in one go."""
RETRY_SECONDS: Final = 5.0
"""Before a chore that failed is tried again; twice as long after every time."""
MAX_RETRY_SECONDS: Final = 300.0
CLAIM_SECONDS: Final = 60.0
"""For how long a chore belongs to the gateway that has begun it."""


class Sweeper:
    """Does what is due; one thread uses it. Several gateways may sweep one database."""

    def __init__(
        self, database: Database, store: ObjectStore, fan_in: FanIn, notices: JobObserver, clock: Clock
    ) -> None:
        """Takes what it works with."""
        self._database = database
        self._store = store
        self._fan_in = fan_in
        self._notices = notices
        self._clock = clock

    def expire(self) -> int:
        """Ends jobs whose time has run out; returns how many."""
        now = self._clock()
        with self._database.read() as session:
            late = session.scalars(
                select(Job.id).where(IS_OPEN, Job.expires <= to_microseconds(now)).limit(MAX_AT_ONCE)
            ).all()
        expired = 0
        for job_id in late:
            with self._database.write() as session:
                job = lock_open(session, job_id, skip_locked=True)
                if job is None:
                    continue
                ending = end(session, job, State.EXPIRED, now)
            expired += 1
            self._notices.ended(ending)
        return expired

    def finish(self) -> int:
        """Ends jobs whose candidates are all ranked, where that could not be done at once; returns how many."""
        with self._database.read() as session:
            complete = session.scalars(
                select(Job.id).where(IS_OPEN, Job.ranked >= Job.candidates).limit(MAX_AT_ONCE)
            ).all()
        return sum(self._fan_in.finish(job_id) for job_id in complete)

    def remove(self) -> int:
        """Removes jobs that need not be kept any longer; returns how many."""
        now = self._clock()
        with self._database.read() as session:
            old = session.scalars(
                select(Job.id).where(Job.delete_at <= to_microseconds(now)).limit(MAX_AT_ONCE)
            ).all()
        removed = 0
        for job_id in old:
            with self._database.write() as session:
                job = lock(session, job_id, skip_locked=True)
                if job is None or job.state in OPEN:
                    continue
                remove(session, job, now)
                removed += 1
        return removed

    def do_chores(self) -> int:
        """Does in the store what is due there; returns how many chores are done."""
        done = 0
        groups = _grouped(self._claim())
        for place, group in enumerate(groups):
            try:
                self._do(group)
            except StoreUnavailableError as error:
                log.warning("the store does not answer: %s", error, extra={"job": group[0].job_id})
                # It will not answer for the others either.
                self._put_off([task for later in groups[place:] for task in later])
                break
            jobs = [task.job_id for task in group]
            with self._database.write() as session:
                session.execute(delete(Task).where(Task.job_id.in_(jobs), Task.chore == group[0].chore))
            done += len(group)
        return done

    def _claim(self) -> list[Task]:
        """Takes chores that are due, so that no other gateway does them as well."""
        now = self._clock()
        moment = to_microseconds(now)
        with self._database.read() as session:
            if session.scalar(select(Task.job_id).where(Task.due <= moment).limit(1)) is None:
                return []
        with self._database.write() as session:
            tasks = list(
                session.scalars(
                    select(Task)
                    .where(Task.due <= moment)
                    # The marker frees slots; the rest has time.
                    .order_by(Task.chore != Chore.MARK, Task.due)
                    .limit(MAX_AT_ONCE)
                    .with_for_update(skip_locked=True)
                )
            )
            for task in tasks:
                task.due = to_microseconds(now + CLAIM_SECONDS)
        return tasks

    def _put_off(self, tasks: Sequence[Task]) -> None:
        now = self._clock()
        with self._database.write() as session:
            for task in tasks:
                seconds = min(RETRY_SECONDS * 2.0**task.tries, MAX_RETRY_SECONDS)
                session.execute(
                    update(Task)
                    .where(Task.job_id == task.job_id, Task.chore == task.chore)
                    .values(due=to_microseconds(now + seconds), tries=Task.tries + 1)
                )

    def _do(self, group: Sequence[Task]) -> None:
        """Does a group of `_grouped`."""
        task = group[0]
        keys = JobKeys(task.job_id)
        match task.chore:
            case Chore.MARK:
                mark(self._store, task.job_id, task.state)
            case Chore.TIDY:
                self._store.delete(*(key for each in group for key in _intermediate_keys(each)))
            case Chore.TIDY_LATE:
                # Pictures of a job that has not succeeded are nobody's.
                succeeded = task.state is State.SUCCEEDED
                self._delete(keys, lambda key: not succeeded or is_intermediate(key))
            case Chore.DELETE:
                self._delete(keys, lambda key: key != keys.cancelled)
            case Chore.DELETE_LATE:
                self._delete(keys, lambda key: True)

    def _delete(self, keys: JobKeys, which: Callable[[str], bool]) -> None:
        self._store.delete(*(info.key for info in self._store.objects(keys.folder) if which(info.key)))


def _grouped(tasks: Sequence[Task]) -> list[list[Task]]:
    """Returns chores in the order in which they are done: what is tidied is one group, all others are groups of one."""
    tidying = [task for task in tasks if task.chore is Chore.TIDY]
    marks = [[task] for task in tasks if task.chore is Chore.MARK]
    others = [[task] for task in tasks if task.chore not in (Chore.MARK, Chore.TIDY)]
    return [*marks, *([tidying] if tidying else []), *others]


def _intermediate_keys(task: Task) -> list[str]:
    keys = JobKeys(task.job_id)
    chunks = range(task.chunks)
    return [keys.encoding, *map(keys.tokens, chunks), *map(keys.scores, chunks)]


def mark(store: ObjectStore, job_id: str, state: State) -> None:
    """Writes the marker that tells the stages that nobody waits for a job any more."""
    reason = "expired" if state is State.EXPIRED else "cancelled"
    content = json.dumps({"reason": reason}).encode()
    store.put(JobKeys(job_id).cancelled, content, content_type="application/json")
