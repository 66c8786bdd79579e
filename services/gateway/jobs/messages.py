"""Builds the messages that send chunks of a job to the encoder, or to the refiner."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from smalti.errors import OversizedMessageError
from smalti.messages import (
    DEFAULT_VERSION,
    MAX_CHUNKS,
    MAX_IN_CHUNK,
    MAX_MESSAGE_BYTES,
    ROUTES_SINCE,
    EncodeTask,
    PictureToRefine,
    RefineTask,
    Stage,
    Trace,
)
from smalti.messages import Chunk as MessageChunk
from smalti.services.gateway.database.clock import to_seconds
from smalti.services.gateway.database.tables import PRIORITIES, Chunk, Job
from smalti.services.gateway.jobs.reading import parameter_of, parameters_of
from smalti.services.gateway.jobs.spec import JobParameters

REFERENCE_BYTES: Final = 256
"""Bytes per candidate by which a later stage's message may be larger: the reference to the picture."""
REWORDING_BYTES: Final = 2048
"""Bytes by which a later stage's message may be larger for a rewritten prompt: at most 64 words of the model."""
ROUTES_BYTES: Final = 1024
"""Bytes by which a message may be larger for what version 3 adds: routes, and the tenant."""


def tasks_of(
    job: Job, chunks: Sequence[Chunk], *, version: int = DEFAULT_VERSION, routes: Mapping[Stage, str] = {}
) -> Iterable[EncodeTask | RefineTask]:
    """Yields the messages for chunks of a job, each within the limits on chunks and bytes of a message.

    Args:
        job: the job.
        chunks: its chunks.
        version: the version of the messages.
        routes: keys of the queues by stage, which messages of version 3 have.
    """
    fields = _shared_fields(job, parameters_of(job), version, routes)
    yield from _encode_tasks(job, [chunk for chunk in chunks if chunk.pictures is None], fields)
    for chunk in chunks:
        if chunk.pictures is not None:
            yield _refine_task(job, chunk, chunk.pictures, fields)


def chunk_numbers(task: EncodeTask | RefineTask) -> list[int]:
    """Returns the numbers of the chunks that a message is for."""
    return [task.chunk] if isinstance(task, RefineTask) else [chunk.chunk for chunk in task.chunks]


def _encode_tasks(job: Job, chunks: Sequence[Chunk], fields: Mapping[str, Any]) -> Iterable[EncodeTask]:
    # With wordings, the encoder's event names an object for each candidate.
    limit = (
        max(MAX_IN_CHUNK // max((chunk.count for chunk in chunks), default=1), 1)
        if parameter_of(job, "vary", False)
        else MAX_CHUNKS
    )
    for start in range(0, len(chunks), limit):
        yield from _within_limits(job, chunks[start : start + limit], fields)


def _within_limits(job: Job, chunks: Sequence[Chunk], fields: Mapping[str, Any]) -> Iterable[EncodeTask]:
    task = _encode_task(job, chunks, fields)
    try:
        task.to_json()
    except OversizedMessageError:
        if len(chunks) == 1:
            raise
        half = len(chunks) // 2
        yield from _within_limits(job, chunks[:half], fields)
        yield from _within_limits(job, chunks[half:], fields)
    else:
        yield task


def _encode_task(job: Job, chunks: Sequence[Chunk], fields: Mapping[str, Any]) -> EncodeTask:
    parameters = parameters_of(job)
    return EncodeTask(
        **fields,
        given=tuple(job.given),
        strength=parameters.strength,
        vary=parameters.vary,
        keep_features=parameters.diversity > 0,
        chunks=tuple(
            MessageChunk(chunk=chunk.number, candidates=tuple(range(chunk.first, chunk.first + chunk.count)))
            for chunk in chunks
        ),
    )


def _refine_task(job: Job, chunk: Chunk, pictures: Sequence[Any], fields: Mapping[str, Any]) -> RefineTask:
    parameters = parameters_of(job)
    assert parameters.second_pass is not None  # Only such a job has pictures to refine.
    return RefineTask(
        **fields,
        chunk=chunk.number,
        second_pass=parameters.second_pass,
        refiner=parameters.refiner,
        pictures=tuple(PictureToRefine.model_validate(picture, extra="ignore") for picture in pictures),
    )


def _shared_fields(
    job: Job, parameters: JobParameters, version: int, routes: Mapping[Stage, str]
) -> dict[str, Any]:
    """Returns the fields that the messages for all stages have."""
    has_routes = version >= ROUTES_SINCE
    newest = {"tenant": job.tenant, "routes": dict(routes), "binding": parameters.binding or 0}
    return {
        "version": version,
        **(newest if has_routes else {}),
        "job": job.id,
        "lease": job.lease,
        "expires": to_seconds(job.expires),
        "priority": PRIORITIES[job.priority],
        "trace": Trace(**job.trace) if job.trace else None,
        "model": parameters.model,
        "revision": parameters.revision,
        "prompt": parameters.prompt,
        "seed": parameters.seed,
        "sampling": parameters.sampling,
        "candidates_in_job": parameters.candidates,
    }


def fits(job: Job, chunk: Chunk) -> bool:
    """Returns whether the chunk's message fits at every stage; each contains the prompt and the given tokens."""
    fields = _shared_fields(job, parameters_of(job), DEFAULT_VERSION, {})
    size = len(_encode_task(job, [chunk], fields).model_dump_json(exclude_none=True).encode())
    return size + REWORDING_BYTES + ROUTES_BYTES + chunk.count * REFERENCE_BYTES <= MAX_MESSAGE_BYTES
