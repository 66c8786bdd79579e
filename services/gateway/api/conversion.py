"""Converts jobs, pictures, and states to messages of the API."""

import logging
from collections.abc import Callable
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.status_pb2 import Status

from smalti.parameters import FREE, SecondPass
from smalti.rpc.conversion import priority_number, refinement_message, sampling_message
from smalti.services.gateway.database.clock import to_microseconds
from smalti.services.gateway.database.tables import OPEN_STATES, PRIORITIES, Job, JobState, ScoredCandidate
from smalti.services.gateway.jobs.context import GatewayContext
from smalti.services.gateway.jobs.reading import UnreadableJobError, parameters_of
from smalti.services.gateway.jobs.repository import JobSnapshot
from smalti.services.gateway.jobs.spec import JobParameters
from smalti.storage import ObjectStore
from smalti.v1 import job_pb2, prompt_pb2
from smalti.v1.model_pb2 import ModelReference
from smalti.v1.tokens_pb2 import ImageTokens

log = logging.getLogger(__name__)

MEDIA_TYPE: Final = "image/png"

UrlOf = Callable[[str], tuple[str, int] | None]
"""Returns the URL of an object and its expiry in microseconds; None if the store has no URLs."""

STATES: Final = {
    JobState.QUEUED: job_pb2.JOB_STATE_QUEUED,
    JobState.RUNNING: job_pb2.JOB_STATE_RUNNING,
    JobState.SUCCEEDED: job_pb2.JOB_STATE_SUCCEEDED,
    JobState.FAILED: job_pb2.JOB_STATE_FAILED,
    JobState.CANCELLED: job_pb2.JOB_STATE_CANCELLED,
    JobState.EXPIRED: job_pb2.JOB_STATE_EXPIRED,
}


def job_message(snapshot: JobSnapshot, url_of: UrlOf, *, full: bool) -> job_pb2.Job:
    """Returns a job as a message; one that cannot be read has little more than its id, and says why.

    Args:
        snapshot: the job.
        url_of: returns the URL of a picture's file.
        full: whether to include its pictures and the initial image.
    """
    job = snapshot.job
    try:
        return _readable_message(snapshot, url_of, full=full)
    except Exception as error:  # Whatever it is: it must not take the other jobs of a list away.
        log.warning("the job cannot be shown: %s", error, extra={"job": job.id})
        trouble = error.problem if isinstance(error, UnreadableJobError) else "an internal error"
        return job_pb2.Job(
            id=job.id,
            version=job.version,
            state=STATES.get(job.state, job_pb2.JOB_STATE_UNSPECIFIED),
            request_id=job.request_id or "",
            create_time=timestamp(job.created),
            start_time=timestamp(job.started),
            end_time=timestamp(job.ended),
            expire_time=timestamp(job.expires),
            delete_time=timestamp(job.delete_at),
            trouble=f"this version of the gateway cannot read the job: {trouble}",
        )


def _readable_message(snapshot: JobSnapshot, url_of: UrlOf, *, full: bool) -> job_pb2.Job:
    """Returns a job as a message.

    Args:
        snapshot: the job.
        url_of: returns the URL of a picture's file.
        full: whether to include its pictures and the initial image.
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
            prompt_encoded=job.prompt_encoded,
            candidates=job.candidates,
            rows=job.rows,
            rows_drawn=job.rows_drawn,
            candidates_drawn=job.candidates_generated,
            candidates_decoded=job.candidates_decoded,
            candidates_ranked=job.candidates_ranked,
            pictures_to_refine=job.pictures_to_refine,
            pictures_refined=job.pictures_refined,
            pictures_refused=job.pictures_refused,
        ),
        jobs_ahead=snapshot.jobs_ahead,
        create_time=timestamp(job.created),
        start_time=timestamp(job.started),
        end_time=timestamp(job.ended),
        expire_time=timestamp(job.expires),
        delete_time=timestamp(job.delete_at),
        trouble=_trouble(job),
    )
    if job.prompt_reading is not None:
        message.prompt_reading.CopyFrom(
            prompt_pb2.PromptReading(
                drawn=job.prompt_reading["drawn"],
                cut=job.prompt_reading["cut"],
                unknown_words=job.prompt_reading["unknown"],
                left_out_words=job.prompt_reading["left_out"],
                notice=job.prompt_reading["notice"],
                text_tokens=job.prompt_reading.get("text_tokens") or 0,
            )
        )
    if job.error is not None:
        message.error.CopyFrom(Status.FromString(job.error))
    if full:
        message.pictures.extend(picture_message(picture, url_of) for picture in snapshot.pictures)
    return message


def _trouble(job: Job) -> str:
    if not job.trouble:
        return ""
    return f"the job is set aside: {job.trouble}" if job.set_aside_until is not None else job.trouble


def is_final(job: Job) -> bool:
    """Returns whether a job has ended."""
    return job.state not in OPEN_STATES


def picture_message(picture: ScoredCandidate, url_of: UrlOf) -> job_pb2.Picture:
    """Returns a picture of a succeeded job as a message."""
    found = url_of(picture.key)
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
        wording=picture.wording or "",
    )


def urls_of(context: GatewayContext, store: ObjectStore) -> UrlOf:
    """Returns what makes the URLs of the objects of a store."""

    def url_of(key: str) -> tuple[str, int] | None:
        seconds = context.settings.url_lifetime
        until = to_microseconds(context.clock() + seconds)
        url = store.presigned_url(key, seconds=seconds)
        return (url, until) if url.startswith(("http://", "https://")) else None

    return url_of


def add_second_pass(message: job_pb2.ImageParameters, asked: SecondPass | None, refiner: str | None) -> None:
    """Adds a second pass, and the revision of its refiner, to parameters."""
    if asked is not None:
        message.upscale = asked.upscale
        if asked.refine is not None:
            message.refine.CopyFrom(refinement_message(asked.refine, refiner))


def duration(seconds: float) -> Duration:
    """Returns a time in seconds as a message."""
    message = Duration()
    message.FromNanoseconds(round(seconds * 1e9))
    return message


def timestamp(microseconds: int | None) -> Timestamp | None:
    """Returns a time in microseconds as a message."""
    if microseconds is None:
        return None
    message = Timestamp()
    message.FromMicroseconds(microseconds)
    return message


def _parameters(job: Job, *, full: bool) -> job_pb2.ImageParameters:
    parameters = parameters_of(job)
    message = job_pb2.ImageParameters(
        model=ModelReference(name=parameters.model, revision=parameters.revision),
        prompt=parameters.prompt,
        n=parameters.n,
        candidates=parameters.candidates,
        first_candidate=parameters.first_candidate,
        seed=parameters.seed,
        sampling=sampling_message(parameters.sampling),
        vary=parameters.vary,
        diversity=parameters.diversity,
    )
    add_second_pass(message, parameters.second_pass, parameters.refiner)
    if job.given and full:
        message.initial_image.CopyFrom(_initial_image(job, parameters))
    return message


def _initial_image(job: Job, parameters: JobParameters) -> job_pb2.InitialImage:
    image = job_pb2.InitialImage(tokens=ImageTokens(tokens=[max(token, 0) for token in job.given]))
    redrawn = [tile for tile, token in enumerate(job.given) if token == FREE]
    if parameters.strength is not None:
        image.strength = parameters.strength
    elif redrawn:
        image.redrawn_tiles.extend(redrawn)
    else:
        image.keep_rows = parameters.keep_rows
    return image
