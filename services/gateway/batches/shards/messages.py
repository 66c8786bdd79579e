"""Builds the messages of shards, and tells the events of shards from those of jobs."""

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from sqlalchemy import ColumnElement

from smalti.batches import BatchKeys
from smalti.messages import EncodeShardTask, Stage, Trace
from smalti.services.gateway.batches.spec import parameters_of, range_of
from smalti.services.gateway.database.clock import MICROSECONDS, to_seconds
from smalti.services.gateway.database.tables import Batch, ChunkProgress, Shard
from smalti.storage import ObjectRef

MESSAGE_SECONDS: Final = 24 * 3600.0
"""Time for which the messages of a lease are good. A shard that is not done by then is sent again."""

REACHED: Final[Mapping[Stage, int]] = {
    Stage.ENCODE: ChunkProgress.ENCODED,
    Stage.GENERATE: ChunkProgress.GENERATED,
    Stage.DECODE: ChunkProgress.DECODED,
    Stage.RANK: ChunkProgress.RANKED,
    Stage.REFINE: ChunkProgress.RANKED + 1,
}
"""`Shard.reached` of a shard that a stage has finished."""

_UUID: Final = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_JOB: Final = re.compile(
    rf"(?P<batch>{_UUID})-(?P<number>[0-9]{{5,6}})(?:-(?P<start>[0-9]{{1,4}})-(?P<count>[0-9]{{1,4}}))?"
)


class ShardName(NamedTuple):
    """What the id of a shard's job says."""

    batch_id: str
    number: int
    start: int
    length: int | None
    """None for a whole shard."""


def shard_of(job_id: str) -> ShardName | None:
    """Returns which shard a job is; None for any other job."""
    match = _JOB.fullmatch(job_id)
    if match is None:
        return None
    count = int(match["count"]) if match["count"] else None
    return ShardName(match["batch"], int(match["number"]), int(match["start"] or 0), count)


def is_shard(name: ShardName) -> tuple[ColumnElement[bool], ...]:
    """Returns the conditions that a row is a shard; a whole one has its name, however many prompts it has."""
    conditions = (
        Shard.batch_id == name.batch_id,
        Shard.number == name.number,
        Shard.start == name.start,
        Shard.part.is_(name.length is not None),
    )
    return conditions if name.length is None else (*conditions, Shard.count == name.length)


def task_of(batch: Batch, shard: Shard, *, routes: Mapping[Stage, str], now: float) -> EncodeShardTask:
    """Returns the message that sends a leased shard.

    Args:
        batch: its batch.
        shard: the shard.
        routes: keys of the queues by stage.
        now: the time in seconds.
    """
    keys, shard_range, parameters = BatchKeys(batch.id), range_of(shard), parameters_of(batch)
    return EncodeShardTask(
        job=keys.job(shard_range),
        lease=shard.lease,
        expires=min(to_seconds(batch.expires), now + MESSAGE_SECONDS),
        trace=Trace(**batch.trace) if batch.trace else None,
        model=batch.model,
        revision=shard.revision or batch.revision,
        tenant=batch.tenant,
        routes=dict(routes),
        binding=shard.binding,
        batch=batch.id,
        range=shard_range,
        shard=ObjectRef(key=keys.shard(shard.number), sha256=shard.sha256),
        picture_format=parameters.picture_format.value,
        slots=shard.slots,
        has_second_pass=parameters.has_second_pass,
    )


def messages_end(batch: Batch) -> int:
    """Returns the time until which messages of shards of an ended batch may be read, in microseconds."""
    sent_last = (batch.ended or batch.created) + round(MESSAGE_SECONDS * MICROSECONDS)
    return min(batch.expires, sent_last)
