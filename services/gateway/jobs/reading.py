"""Reading what a job's row holds as JSON, which another version of the gateway may have written.

Unknown fields are ignored, and stay in the row, since these columns are never written again.
"""

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from smalti.policy import PicturesToCheck, PictureToCheck
from smalti.services.gateway.database.tables import Job
from smalti.services.gateway.jobs.spec import JobParameters
from smalti.validation import first_problem


class UnreadableJobError(Exception):
    """This version cannot read the row of a job."""

    def __init__(self, job_id: str, problem: str) -> None:
        super().__init__(f"job {job_id} cannot be read: {problem}")
        self.problem = problem


def parameters_of(job: Job) -> JobParameters:
    """Returns the parameters of a job; raises `UnreadableJobError`."""
    try:
        return JobParameters.model_validate(job.parameters, extra="ignore")
    except ValidationError as error:
        raise UnreadableJobError(job.id, f"parameters: {first_problem(error, show_value=False)}") from error


def parameter_of(job: Job, name: str, default: Any) -> Any:
    """Returns one of the parameters as it is stored, also if the others cannot be read."""
    return job.parameters.get(name, default) if isinstance(job.parameters, dict) else default


def first_lease(job: Job) -> int:
    """Returns the first lease of the revision that a job is bound to; 0 if it was never bound to another."""
    return parameter_of(job, "since_lease", 0) or 0


def is_of_earlier_revision(job: Job, lease: int | None) -> bool:
    """Returns whether an event with a lease is about work of a revision that the job is not bound to any more."""
    return lease is not None and lease < first_lease(job)


def pictures_to_check(job: Job, pictures: Sequence[PictureToCheck]) -> PicturesToCheck:
    """Returns what the operator's policy is asked about pictures of a job."""
    return PicturesToCheck(
        job_id=job.id,
        prompt=parameter_of(job, "prompt", ""),
        pictures=pictures,
        labels=job.labels,
        model=parameter_of(job, "model", ""),
        revision=parameter_of(job, "revision", ""),
    )
