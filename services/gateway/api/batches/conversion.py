"""Converts batches to messages of the API."""

import logging
from typing import Final

from google.rpc.status_pb2 import Status

from smalti.batches import BatchDefaults, BatchKeys, InputFormat, PictureFormat
from smalti.rpc.conversion import sampling_message
from smalti.services.gateway.api.conversion import add_second_pass, duration, timestamp
from smalti.services.gateway.batches import (
    BatchParameters,
    BatchSnapshot,
    BatchSource,
    Estimate,
    parameters_of,
    rate_of,
    seconds_left,
)
from smalti.services.gateway.database.tables import OPEN_BATCH_STATES, Batch, BatchState
from smalti.v1 import batch_pb2, job_pb2
from smalti.v1.model_pb2 import ModelReference

log = logging.getLogger(__name__)

STATES: Final = {
    BatchState.PLANNING: batch_pb2.BATCH_STATE_PLANNING,
    BatchState.RUNNING: batch_pb2.BATCH_STATE_RUNNING,
    BatchState.PAUSED: batch_pb2.BATCH_STATE_PAUSED,
    BatchState.FINISHING: batch_pb2.BATCH_STATE_FINISHING,
    BatchState.SUCCEEDED: batch_pb2.BATCH_STATE_SUCCEEDED,
    BatchState.FAILED: batch_pb2.BATCH_STATE_FAILED,
    BatchState.CANCELLED: batch_pb2.BATCH_STATE_CANCELLED,
    BatchState.EXPIRED: batch_pb2.BATCH_STATE_EXPIRED,
}
FORMATS: Final = {
    InputFormat.TEXT: batch_pb2.BATCH_FORMAT_TEXT,
    InputFormat.JSONL: batch_pb2.BATCH_FORMAT_JSONL,
    InputFormat.CSV: batch_pb2.BATCH_FORMAT_CSV,
    InputFormat.PARQUET: batch_pb2.BATCH_FORMAT_PARQUET,
    InputFormat.OPENAI: batch_pb2.BATCH_FORMAT_OPENAI,
}
PICTURE_FORMATS: Final = {
    PictureFormat.PNG: batch_pb2.PICTURE_FORMAT_PNG,
    PictureFormat.WEBP: batch_pb2.PICTURE_FORMAT_WEBP,
}


def is_final(batch: Batch) -> bool:
    """Returns whether a batch has ended."""
    return batch.state not in OPEN_BATCH_STATES


def batch_message(snapshot: BatchSnapshot) -> batch_pb2.Batch:
    """Returns a batch as a message; one that cannot be read has no parameters, and says why."""
    batch = snapshot.batch
    message = batch_pb2.Batch(
        id=batch.id,
        version=batch.version,
        state=STATES.get(batch.state, batch_pb2.BATCH_STATE_UNSPECIFIED),
        ending=STATES[batch.ending] if batch.ending else batch_pb2.BATCH_STATE_UNSPECIFIED,
        request_id=batch.request_id or "",
        name=batch.name,
        labels=batch.labels,
        rank=batch.rank,
        slots=batch.slots or 0,
        validate_only=batch.validate_only,
        progress=_progress(snapshot),
        trouble=batch.trouble or "",
        output_prefix=BatchKeys(batch.id).prefix,
        output_file_id=batch.output_file or "",
        error_file_id=batch.error_file or "",
        create_time=timestamp(batch.created),
        start_time=timestamp(batch.started),
        finish_time=timestamp(batch.finishing),
        end_time=timestamp(batch.ended),
        expire_time=timestamp(batch.expires),
        delete_time=timestamp(batch.delete_at),
    )
    try:
        parameters = parameters_of(batch)
    except Exception as error:  # Whatever it is: it must not take the other batches of a list away.
        log.warning("the batch cannot be shown: %s", error)
        message.trouble = "this version of the gateway cannot read the batch"
        return message
    message.input.CopyFrom(_input(parameters.input))
    message.parameters.CopyFrom(_parameters(batch, parameters))
    message.picture_format = PICTURE_FORMATS[parameters.picture_format]
    message.shard_prompts = parameters.shard_prompts
    if snapshot.estimate is not None:
        message.estimate.CopyFrom(_estimate(snapshot.estimate))
    if batch.error is not None:
        message.error.CopyFrom(Status.FromString(batch.error))
    return message


def _progress(snapshot: BatchSnapshot) -> batch_pb2.BatchProgress:
    batch = snapshot.batch
    left = seconds_left(batch, snapshot.now)
    return batch_pb2.BatchProgress(
        prompts=batch.prompts,
        blank=batch.blank,
        prompts_invalid=batch.invalid,
        prompts_drawn=batch.drawn,
        prompts_failed=batch.failed,
        candidates=batch.candidates,
        candidates_generated=snapshot.generated,
        pictures=batch.pictures,
        bytes=batch.size,
        shards=batch.shards,
        shards_ended=batch.shards_ended,
        shards_in_flight=snapshot.in_flight,
        prompts_per_second=rate_of(batch, snapshot.now),
        time_left=None if left is None else duration(left),
    )


def _input(source: BatchSource) -> batch_pb2.BatchInput:
    message = batch_pb2.BatchInput(
        format=FORMATS[source.format],
        columns=source.columns,
        ignore_columns=source.ignore_columns,
        skip_invalid=source.skip_invalid,
    )
    if source.file_id:
        message.file_id = source.file_id
    else:
        message.object_key = source.object_key
    return message


def _parameters(batch: Batch, parameters: BatchParameters) -> job_pb2.ImageParameters:
    defaults: BatchDefaults = parameters.defaults
    counts = defaults.counts()
    message = job_pb2.ImageParameters(
        model=ModelReference(name=batch.model, revision=batch.revision),
        n=counts.n,
        candidates=counts.candidates,
        seed=defaults.seed,
        sampling=sampling_message(defaults.sampling),
        vary=defaults.vary,
        diversity=defaults.diversity,
    )
    add_second_pass(message, defaults.second_pass, parameters.refiner)
    return message


def _estimate(estimate: Estimate) -> batch_pb2.BatchEstimate:
    return batch_pb2.BatchEstimate(
        candidates=estimate.candidates,
        pictures=estimate.pictures,
        bytes=estimate.size,
        duration=None if estimate.seconds is None else duration(estimate.seconds),
    )
