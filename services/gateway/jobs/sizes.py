"""The sizes of a job's pictures: those of its own revision, whichever the gateway is set to."""

import threading
from collections import OrderedDict
from typing import Final

from smalti.services.gateway.database.connection import Database
from smalti.services.gateway.database.tables import Job
from smalti.services.gateway.jobs.reading import parameter_of
from smalti.services.gateway.models import Catalogue

MAX_SIZES: Final = 4096
"""Sizes that are kept; those that were asked for longest ago are dropped first."""


def side_of(job: Job) -> int:
    """Returns the tiles along each side of a job's pictures."""
    kept = parameter_of(job, "keep_rows", 0)
    return job.rows // job.candidates + (kept if isinstance(kept, int) else 0)


class JobSizes:
    """The sizes of jobs that are drawn now; thread-safe."""

    def __init__(self, database: Database, catalogue: Catalogue) -> None:
        self._database = database
        self._catalogue = catalogue
        self._lock = threading.Lock()
        self._sides: OrderedDict[tuple[str, int | None], int] = OrderedDict()

    def side(self, job_id: str, lease: int | None) -> int | None:
        """Returns the tiles along each side of a job's pictures; None if the job does not exist.

        Asks the database only where models differ in it, and once for each lease of a job: between two leases it may
        be bound to another revision.

        Raises:
            DatabaseUnavailableError: the database does not answer.
        """
        if (common := self._catalogue.fleet.side) is not None:
            return common
        key = job_id, lease
        with self._lock:
            if key in self._sides:
                self._sides.move_to_end(key)
                return self._sides[key]
        with self._database.read() as session:
            job = session.get(Job, job_id)
            side = side_of(job) if job is not None else None
        if side is not None:
            with self._lock:
                self._sides[key] = side
                while len(self._sides) > MAX_SIZES:
                    self._sides.popitem(last=False)
        return side
