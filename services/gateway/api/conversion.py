"""Jobs, pictures and states in the contract's words."""

from collections.abc import Callable
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.status_pb2 import Status

from smalti.rpc.conversion import priority_number, sampling_message
from smalti.services.gateway.database.tables import OPEN, PRIORITIES, Job, Picture, State
from smalti.services.gateway.jobs.repository import Snapshot
from smalti.services.gateway.jobs.spec import Parameters
from smalti.v1 import job_pb2, prompt_pb2
from smalti.v1.model_pb2 import ModelReference

MEDIA_TYPE: Final = "image/png"

Address = Callable[[str], tuple[str, int] | None]
"""Returns where an object may be fetched, and until when in microseconds; None where the store gives no addresses."""

STATES: Final = {
    State.QUEUED: job_pb2.JOB_STATE_QUEUED,
    State.RUNNING: job_pb2.JOB_STATE_RUNNING,
    State.SUCCEEDED: job_pb2.JOB_STATE_SUCCEEDED,
    State.FAILED: job_pb2.JOB_STATE_FAILED,
    State.CANCELLED: job_pb2.JOB_STATE_CANCELLED,
    State.EXPIRED: job_pb2.JOB_STATE_EXPIRED,
}


def job_message(snapshot: Snapshot, address: Address, *, full: bool) -> job_pb2.Job:
    """Returns a job as a message.

    Args:
        snapshot: the job.
        address: gives the addresses of pictures.
        full: with its pictures and the initial image.
    """
    job = snapshot.job
    message = job_pb2.Job(
        id=job.id,
        version=job.version,
        state=STATES[job.state],
        request_id=job.request_id or "",
        parameters=_parameters(job, full=full),
        priority=priority_number(PRIORITIES[job.priority]),
        labels=job.labels,
        progress=job_pb2.JobProgress(
            prompt_encoded=job.encoded,
            candidates=job.candidates,
            rows=job.rows,
            rows_drawn=job.rows_drawn,
            candidates_drawn=job.drawn,
            candidates_decoded=job.decoded,
            candidates_ranked=job.ranked,
        ),
        jobs_ahead=snapshot.jobs_ahead,
        create_time=timestamp(job.created),
        start_time=timestamp(job.started),
        end_time=timestamp(job.ended),
        expire_time=timestamp(job.expires),
        delete_time=timestamp(job.delete_at),
    )
    if job.reading is not None:
        message.prompt_reading.CopyFrom(
            prompt_pb2.PromptReading(
                drawn=job.reading["drawn"],
                cut=job.reading["cut"],
                unknown_words=job.reading["unknown"],
                left_out_words=job.reading["left_out"],
                notice=job.reading["notice"],
            )
        )
    if job.error is not None:
        message.error.CopyFrom(Status.FromString(job.error))
    if full:
        message.pictures.extend(picture_message(picture, address) for picture in snapshot.pictures)
    return message


def is_final(job: Job) -> bool:
    """Whether a job has ended."""
    return job.state not in OPEN


def picture_message(picture: Picture, address: Address) -> job_pb2.Picture:
    """Returns a picture of a job that has succeeded as a message."""
    found = address(picture.key)
    return job_pb2.Picture(
        candidate=picture.candidate,
        rank=picture.rank or 0,
        score=picture.score,
        width=picture.width,
        height=picture.height,
        media_type=MEDIA_TYPE,
        size_bytes=picture.size,
        sha256=picture.sha256,
        object_key=picture.key,
        url=found[0] if found else "",
        url_expire_time=timestamp(found[1]) if found else None,
    )


def timestamp(microseconds: int | None) -> Timestamp | None:
    """Returns a time of the database as a message."""
    if microseconds is None:
        return None
    message = Timestamp()
    message.FromMicroseconds(microseconds)
    return message


def _parameters(job: Job, *, full: bool) -> job_pb2.ImageParameters:
    parameters = Parameters.model_validate(job.parameters)
    message = job_pb2.ImageParameters(
        model=ModelReference(name=parameters.model, revision=parameters.revision),
        prompt=parameters.prompt,
        n=parameters.n,
        candidates=parameters.candidates,
        first_candidate=parameters.first_candidate,
        seed=parameters.seed,
        sampling=sampling_message(parameters.sampling),
    )
    if parameters.keep_rows and full:
        message.initial_image.keep_rows = parameters.keep_rows
        message.initial_image.tokens.tokens.extend(job.given)
    return message
