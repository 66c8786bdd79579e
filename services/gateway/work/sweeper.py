"""Work that becomes due: expires and removes jobs, and runs the pending tasks in the object store."""

import logging
from collections.abc import Callable, Sequence
from typing import Final

from sqlalchemy import ColumnElement, delete, or_, select, update

from smalti.errors import StoreUnavailableError
from smalti.services.gateway.database.clock import to_microseconds
from smalti.services.gateway.database.tables import (
    IS_OPEN,
    OPEN_STATES,
    Job,
    JobState,
    StoreAction,
    StoreTask,
)
from smalti.services.gateway.jobs.aside import apart, is_not_set_aside
from smalti.services.gateway.jobs.context import GatewayContext
from smalti.services.gateway.jobs.lifecycle import end, lock, lock_open, remove
from smalti.services.gateway.jobs.objects import kept_pictures, write_marker
from smalti.services.gateway.work.fan_in import FanIn
from smalti.storage import JobKeys, is_intermediate, is_picture

log = logging.getLogger(__name__)

BATCH_SIZE: Final = 100
"""Number of jobs or store tasks that one query reads."""
RETRY_SECONDS: Final = 5.0
"""Delay before a failed store task is tried again; it doubles with every failure."""
MAX_RETRY_SECONDS: Final = 300.0
CLAIM_SECONDS: Final = 60.0
"""Time for which a store task belongs to the gateway that has claimed it."""


class Sweeper:
    """Does what is due; one thread per gateway. Several gateways may sweep one database."""

    def __init__(self, context: GatewayContext, fan_in: FanIn) -> None:
        self._context = context
        self._database = context.database
        self._store = context.store
        self._events = context.events
        self._clock = context.clock
        self._fan_in = fan_in

    def expire(self) -> int:
        """Ends jobs that have exceeded their time limit; returns how many."""
        now = self._clock()
        with self._database.read() as session:
            late = session.scalars(
                select(Job.id).where(IS_OPEN, Job.expires <= to_microseconds(now)).limit(BATCH_SIZE)
            ).all()
        expired = 0
        for job_id in late:
            with apart(self._context, job_id):
                expired += self._expire(job_id, now)
        return expired

    def _expire(self, job_id: str, now: float) -> bool:
        with self._database.write() as session:
            job = lock_open(session, job_id, skip_locked=True)
            outcome = end(session, job, JobState.EXPIRED, now) if job is not None else None
        if outcome:
            self._events.ended(outcome)
        return outcome is not None

    def finish(self) -> int:
        """Finishes jobs whose candidates are all ranked but whose finish has failed before; returns how many ended."""
        # While the refiner works on the chosen pictures, there is nothing to do.
        is_due = or_(Job.pictures_refined >= Job.pictures_to_refine, Job.refining.is_(False))
        with self._database.read() as session:
            complete = session.scalars(
                select(Job.id)
                .where(
                    IS_OPEN, Job.candidates_ranked >= Job.candidates, is_due, is_not_set_aside(self._clock())
                )
                .limit(BATCH_SIZE)
            ).all()
        finished = 0
        for job_id in complete:
            with apart(self._context, job_id):
                finished += self._fan_in.finish(job_id)
        return finished

    def remove(self) -> int:
        """Removes jobs whose retention is over; returns how many."""
        now = self._clock()
        with self._database.read() as session:
            old = session.scalars(
                select(Job.id)
                .where(Job.delete_at <= to_microseconds(now), is_not_set_aside(now))
                .limit(BATCH_SIZE)
            ).all()
        removed = 0
        for job_id in old:
            with apart(self._context, job_id), self._database.write() as session:
                job = lock(session, job_id, skip_locked=True)
                if job is not None and job.state not in OPEN_STATES:
                    remove(session, job, now)
                    removed += 1
        return removed

    def run_store_tasks(self) -> int:
        """Runs the store tasks that are due; returns how many have succeeded."""
        done = 0
        groups = _grouped(self._claim())
        for position, group in enumerate(groups):
            try:
                self._run(group)
            except StoreUnavailableError as error:
                log.warning("the store does not answer: %s", error, extra={"job": group[0].job_id})
                # The other tasks would fail too.
                self._postpone([task for later in groups[position:] for task in later])
                break
            with self._database.write() as session:
                session.execute(
                    delete(StoreTask).where(
                        StoreTask.job_id.in_([task.job_id for task in group]),
                        StoreTask.action == group[0].action,
                        _is_still_claimed(group[0]),
                    )
                )
            done += len(group)
        return done

    def _claim(self) -> list[StoreTask]:
        """Claims tasks that are due, so that no other gateway runs them."""
        now = self._clock()
        moment = to_microseconds(now)
        is_known = StoreTask.action.in_(
            list(StoreAction)
        )  # A newer gateway may have others, and runs them itself.
        with self._database.read() as session:
            if (
                session.scalar(select(StoreTask.job_id).where(StoreTask.due <= moment, is_known).limit(1))
                is None
            ):
                return []
        with self._database.write() as session:
            tasks = list(
                session.scalars(
                    select(StoreTask)
                    .where(StoreTask.due <= moment, is_known)
                    # The marker frees slots of the generators, so it comes first.
                    .order_by(StoreTask.action != StoreAction.WRITE_MARKER, StoreTask.due)
                    .limit(BATCH_SIZE)
                    .with_for_update(skip_locked=True)
                )
            )
            for task in tasks:
                task.due = to_microseconds(now + CLAIM_SECONDS)
                task.owner = self._database.id
        return tasks

    def _postpone(self, tasks: Sequence[StoreTask]) -> None:
        now = self._clock()
        with self._database.write() as session:
            for task in tasks:
                seconds = min(RETRY_SECONDS * 2.0**task.tries, MAX_RETRY_SECONDS)
                session.execute(
                    update(StoreTask)
                    .where(
                        StoreTask.job_id == task.job_id,
                        StoreTask.action == task.action,
                        _is_still_claimed(task),
                    )
                    .values(due=to_microseconds(now + seconds), tries=StoreTask.tries + 1, owner=None)
                )

    def _run(self, group: Sequence[StoreTask]) -> None:
        """Runs the tasks of a group, which have the same action."""
        task = group[0]
        keys = JobKeys(task.job_id)
        match task.action:
            case StoreAction.WRITE_MARKER:
                write_marker(self._store, task.job_id, task.state)
            case StoreAction.CLEAN_UP:
                self._store.delete(*(key for each in group for key in self._intermediate_keys(each)))
            case StoreAction.CLEAN_UP_LATE:
                self._delete(task, self._is_useless(task))
            case StoreAction.DELETE:
                self._delete(task, lambda key: key != keys.cancelled)
            case StoreAction.END_SHARD:
                write_marker(self._store, task.job_id, task.state)
                self._delete(task, lambda key: key != keys.cancelled)
            case StoreAction.DELETE_LATE | StoreAction.DELETE_AGAIN:
                self._delete(task, lambda key: True)

    def _is_useless(self, task: StoreTask) -> Callable[[str], bool]:
        """Returns what tells whether an object of an ended job is of no use; only a succeeded job keeps pictures."""
        if task.state is not JobState.SUCCEEDED:
            return lambda key: True
        with self._database.read() as session:
            kept = kept_pictures(session, task.job_id)
        # Another worker may have drawn the same candidate with other bytes.
        return lambda key: is_intermediate(key) or (is_picture(key) and key not in kept)

    def _delete(self, task: StoreTask, which: Callable[[str], bool]) -> None:
        """Deletes objects by the keys that the database knows, and by listing, which may be behind."""
        folder = JobKeys(task.job_id).folder
        known = [folder + key for key in task.keys or ()]
        listed = [info.key for info in self._store.objects(folder)]
        self._store.delete(*(key for key in dict.fromkeys([*known, *listed]) if which(key)))

    def _intermediate_keys(self, task: StoreTask) -> list[str]:
        keys, chunks = JobKeys(task.job_id), range(task.chunks)
        if task.keys is not None:
            known = [keys.folder + key for key in task.keys]
            return [key for key in known if is_intermediate(key) and key != keys.cancelled]
        # A task of an older version.
        # The keys of wordings' encodings do not follow from the job.
        encodings = (
            [info.key for info in self._store.objects(keys.encodings)] if task.varied else [keys.encoding]
        )
        return [*encodings, *map(keys.tokens, chunks), *map(keys.scores, chunks)]


def _is_still_claimed(task: StoreTask) -> ColumnElement[bool]:
    """Returns the condition that nobody else has claimed a task since, such as while this gateway was suspended.

    All tasks that are claimed together have the same time, and no two claims of a task have.
    """
    return StoreTask.due == task.due


def _grouped(tasks: Sequence[StoreTask]) -> list[list[StoreTask]]:
    """Groups tasks in the order in which they run: all CLEAN_UP tasks are one group, any other task is its own."""
    clean_ups = [task for task in tasks if task.action is StoreAction.CLEAN_UP]
    markers = [[task] for task in tasks if task.action is StoreAction.WRITE_MARKER]
    others = [[task] for task in tasks if task.action not in (StoreAction.WRITE_MARKER, StoreAction.CLEAN_UP)]
    return [*markers, *([clean_ups] if clean_ups else []), *others]
