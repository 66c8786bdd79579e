"""What is known of work over which workers crashed.

A broker marks what it delivers again, but does not say why: everything that a crashed worker held comes back with the
same mark, and so does what a lost connection held. Valkey gives a message back only after a while, and meanwhile the
gateway sends it anew, without a mark. So the record of a job is in the object store: all workers see it, and it
outlives them. `smalti.queue.crashes.journal` finds out what a worker was doing when it crashed.
"""

from typing import Annotated

from pydantic import Field, ValidationError

from smalti.errors import DamagedObjectError, MissingObjectError
from smalti.messages import Message, Stage
from smalti.storage import JobKeys, ObjectStore, digest
from smalti.validation import Strict

MAX_WORKS = 256
"""Pieces of work that a record names."""


def work_id(message: Message) -> str:
    """Returns a short name of the work that a message asks for."""
    return digest("\0".join(message.work_key).encode())[:16]


class PoisonRecord(Strict):
    """The crashes of workers over a job, at one stage."""

    crashes: Annotated[int, Field(ge=0)] = 0
    """Workers that crashed while they worked on the job, among other things or on nothing else."""
    alone: Annotated[int, Field(ge=0)] = 0
    """Those that worked on nothing else. A worker that runs work of the job alone counts itself at the beginning."""
    cleared: bool = False
    """Whether some work of the job has ended since without a crash."""
    works: Annotated[tuple[str, ...], Field(max_length=MAX_WORKS)] = ()
    """The work over which they crashed, unless it has ended since; see `work_id`."""

    def suspects(self, work: str) -> bool:
        """Returns whether work must run alone: it may be what the workers crash over."""
        return bool(self.crashes) and (not self.cleared or work in self.works)

    def convicts(self, limit: int) -> bool:
        """Returns whether the job is the cause: workers crash over it alone, too, and more than once."""
        return self.crashes >= limit and self.alone >= limit - 1


class PoisonRecords:
    """The records of a stage in the object store. Every method may raise `StoreUnavailableError`."""

    def __init__(self, store: ObjectStore, stage: Stage) -> None:
        self._store = store
        self._stage = stage

    def load(self, job: str) -> PoisonRecord:
        """Returns the record of a job; an empty one if it is missing or unreadable."""
        try:
            return PoisonRecord.model_validate_json(self._store.get(self._key(job)))
        except (MissingObjectError, DamagedObjectError, ValidationError):
            return PoisonRecord()

    def add(self, job: str, works: set[str], *, alone: bool, crashes: int = 1) -> None:
        """Adds a crash.

        Args:
            job: the job.
            works: its work over which the worker crashed.
            alone: whether the worker worked on nothing else.
            crashes: at least so many crashes are there with this one.
        """
        record = self.load(job)
        self._save(
            job,
            record.model_copy(
                update={
                    "crashes": max(record.crashes + 1, crashes),
                    "alone": record.alone + alone,
                    "cleared": False,
                    "works": tuple(sorted({*record.works, *works}))[:MAX_WORKS],
                }
            ),
        )

    def begin_alone(self, message: Message, crashes: int) -> None:
        """Counts a crash of this worker in advance; `end_alone` takes it back."""
        self.add(message.job, {work_id(message)}, alone=True, crashes=crashes)

    def end_alone(self, message: Message, *, cleared: bool) -> None:
        """Takes back what `begin_alone` counted.

        Args:
            message: the work that ran alone.
            cleared: whether it has ended, so that the job is not to blame.
        """
        record = self.load(message.job)
        works = set(record.works) - ({work_id(message)} if cleared else set())
        if cleared and not works:
            self._store.delete(self._key(message.job))
            return
        changes = {
            "crashes": max(record.crashes - 1, 0),
            "alone": max(record.alone - 1, 0),
            "cleared": record.cleared or cleared,
            "works": tuple(sorted(works)),
        }
        self._save(message.job, record.model_copy(update=changes))

    def _save(self, job: str, record: PoisonRecord) -> None:
        self._store.put(self._key(job), record.model_dump_json().encode())

    def _key(self, job: str) -> str:
        return JobKeys(job).poison_record(str(self._stage))
