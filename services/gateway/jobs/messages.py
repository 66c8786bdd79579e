"""Builds the messages that send chunks of a job to the encoder."""

from collections.abc import Iterable, Sequence
from typing import Final

from smalti.errors import OversizedMessageError
from smalti.messages import MAX_CHUNKS, MAX_IN_CHUNK, MAX_MESSAGE_BYTES, EncodeTask, Trace
from smalti.messages import Chunk as MessageChunk
from smalti.services.gateway.database.clock import to_seconds
from smalti.services.gateway.database.tables import PRIORITIES, Chunk, Job
from smalti.services.gateway.jobs.spec import JobParameters

REFERENCE_BYTES: Final = 256
"""Bytes per candidate by which a later stage's message may be larger: the reference to the picture."""
REWORDING_BYTES: Final = 2048
"""Bytes by which a later stage's message may be larger for a rewritten prompt: at most 64 words of the model."""


def encode_tasks(job: Job, chunks: Sequence[Chunk]) -> Iterable[EncodeTask]:
    """Yields the messages for chunks of a job, each within the limits on chunks and bytes of a message."""
    # With wordings, the encoder's event names an object for each candidate.
    limit = (
        max(MAX_IN_CHUNK // max(chunk.count for chunk in chunks), 1)
        if job.parameters.get("vary")
        else MAX_CHUNKS
    )
    for start in range(0, len(chunks), limit):
        yield from _within_limits(job, chunks[start : start + limit])


def _within_limits(job: Job, chunks: Sequence[Chunk]) -> Iterable[EncodeTask]:
    task = _encode_task(job, chunks)
    try:
        task.to_json()
    except OversizedMessageError:
        if len(chunks) == 1:
            raise
        half = len(chunks) // 2
        yield from _within_limits(job, chunks[:half])
        yield from _within_limits(job, chunks[half:])
    else:
        yield task


def _encode_task(job: Job, chunks: Sequence[Chunk]) -> EncodeTask:
    parameters = JobParameters.model_validate(job.parameters)
    return EncodeTask(
        job=job.id,
        lease=job.lease,
        expires=to_seconds(job.expires),
        priority=PRIORITIES[job.priority],
        trace=Trace(**job.trace) if job.trace else None,
        model=parameters.model,
        revision=parameters.revision,
        prompt=parameters.prompt,
        seed=parameters.seed,
        sampling=parameters.sampling,
        candidates_in_job=parameters.candidates,
        given=tuple(job.given),
        vary=parameters.vary,
        keep_features=parameters.diversity > 0,
        chunks=tuple(
            MessageChunk(chunk=chunk.number, candidates=tuple(range(chunk.first, chunk.first + chunk.count)))
            for chunk in chunks
        ),
    )


def fits(job: Job, chunk: Chunk) -> bool:
    """Returns whether the chunk's message fits at every stage; each contains the prompt and the given tokens."""
    size = len(_encode_task(job, [chunk]).model_dump_json(exclude_none=True).encode())
    return size + REWORDING_BYTES + chunk.count * REFERENCE_BYTES <= MAX_MESSAGE_BYTES
