"""Finishes batches: the manifest, the summary, and the mark of a complete one; then the batch has ended.

It may be done again, by another gateway too, and gives the same files then.
"""

import logging
from collections.abc import Iterator
from typing import Final

from sqlalchemy import select, tuple_

from smalti.batches import (
    BatchDescription,
    BatchKeys,
    BatchSummary,
    FinalState,
    InputRecord,
    ResultPart,
    ShardRange,
    StorePlace,
    finish,
)
from smalti.errors import DamagedObjectError, MissingObjectError
from smalti.files import temporary_folder
from smalti.service import failpoints
from smalti.services.gateway.batches.answers import store_answers
from smalti.services.gateway.batches.claims import Claim, Claims
from smalti.services.gateway.batches.cleaning import delete_strays
from smalti.services.gateway.batches.lifecycle import end, touch
from smalti.services.gateway.batches.signals import BatchSignals
from smalti.services.gateway.batches.spec import parameters_of, range_of
from smalti.services.gateway.database.tables import Batch, BatchState, Shard, ShardState
from smalti.services.gateway.jobs.context import GatewayContext
from smalti.storage import content_key

log = logging.getLogger(__name__)

TOGETHER: Final = 1000
"""Shards that one query reads."""
_FINAL: Final[dict[BatchState, FinalState]] = {
    BatchState.SUCCEEDED: "complete",
    BatchState.CANCELLED: "cancelled",
    BatchState.EXPIRED: "expired",
}


class _LostPartError(Exception):
    """The results of a shard are missing or damaged."""

    def __init__(self, shard: ShardRange, problem: str) -> None:
        super().__init__(problem)
        self.shard = shard


class Finisher:
    """Finishes batches; one thread per gateway."""

    def __init__(self, context: GatewayContext, signals: BatchSignals, claims: Claims) -> None:
        self._context = context
        self._database = context.database
        self._store = context.store
        self._signals = signals
        self._claims = claims

    def finish_next(self) -> bool:
        """Finishes a batch that nobody finishes; returns whether there was one.

        Raises:
            UnavailableError: the database or the store does not answer; it is finished later.
        """
        return self._claims.work(self._finish_or_draw_again, Batch.state == BatchState.FINISHING)

    def _finish_or_draw_again(self, claim: Claim) -> None:
        try:
            self._finish(claim)
        except _LostPartError as error:
            self._draw_again(claim, error)

    def _finish(self, claim: Claim) -> None:
        with self._database.write() as session:
            batch = claim.lock(session)
        keys = BatchKeys(batch.id)
        ending = batch.ending or BatchState.SUCCEEDED
        failpoints.reach("gateway.before-manifest", job=batch.id, batch=batch.name)
        with temporary_folder() as folder:
            summary = finish(
                StorePlace(self._store, keys.prefix),
                self._describe(batch),
                self._parts(claim, keys),
                _FINAL[ending],
                folder=folder,
                before_mark=lambda summary: delete_strays(self._store, keys, summary),
            )
        failpoints.reach("gateway.after-manifest", job=batch.id, batch=batch.name)
        files = store_answers(self._context, batch, self._parts(claim, keys), ending)
        with self._database.write() as session:
            locked = claim.lock(session)
            _count(locked, summary)
            locked.output_file, locked.error_file = files.output, files.error
            outcome = end(session, locked, ending, self._context.clock())
        log.info("batch %s has ended: %s", batch.id, ending)
        self._signals.tell_end(outcome)

    def _describe(self, batch: Batch) -> BatchDescription:
        parameters, cursor = parameters_of(batch), batch.cursor or {}
        return BatchDescription(
            input=InputRecord(
                name=parameters.input.name, sha256=cursor.get("sha256", ""), format=parameters.input.format
            ),
            model=batch.model,
            parameters=parameters.defaults,
            picture_format=parameters.picture_format,
            shard_prompts=parameters.shard_prompts,
            prompts=batch.prompts,
            blank=batch.blank,
        )

    def _parts(self, claim: Claim, keys: BatchKeys) -> Iterator[ResultPart]:
        """Yields the results of all shards that are done, in the order of their rows."""
        after = (-1, 0)
        while True:
            claim.check()
            query = (
                select(Shard)
                .where(
                    Shard.batch_id == claim.batch_id,
                    Shard.state == ShardState.DONE,
                    tuple_(Shard.number, Shard.start) > after,
                )
                .order_by(Shard.number, Shard.start)
                .limit(TOGETHER)
            )
            with self._database.read() as session:
                shards = session.scalars(query).all()
            for shard in shards:
                yield self._part(keys, range_of(shard), shard.results or "")
            if len(shards) < TOGETHER:
                return
            after = (shards[-1].number, shards[-1].start)

    def _part(self, keys: BatchKeys, shard: ShardRange, sha256: str) -> ResultPart:
        key = content_key(keys.part(shard), sha256)

        def load() -> bytes:
            try:
                return self._store.get(key, sha256=sha256)
            except (MissingObjectError, DamagedObjectError) as error:
                raise _LostPartError(shard, str(error)) from error

        return ResultPart(range=shard, load=load)

    def _draw_again(self, claim: Claim, error: _LostPartError) -> None:
        """Draws a shard again whose results are lost; its tar is found by the stage that writes it."""
        shard = error.shard
        log.error("shard %s of batch %s is drawn again: %s", shard.name, claim.batch_id, error)
        with self._database.write() as session:
            batch = claim.lock(session)
            of_shard = (
                Shard.batch_id == claim.batch_id,
                Shard.number == shard.number,
                Shard.start == shard.start,
                Shard.count == shard.count,
            )
            row = session.scalars(
                select(Shard).where(*of_shard, Shard.state == ShardState.DONE)
            ).one_or_none()
            if row is None:
                return
            if batch.ending is not BatchState.SUCCEEDED:
                # Nothing is drawn any more, so its prompts are not in the manifest.
                row.state, row.results = ShardState.DROPPED, None
                return
            row.state, row.results, row.reached, row.generated = ShardState.WAITING, None, 0, 0
            batch.shards_ended = max(0, batch.shards_ended - 1)
            batch.state, batch.ending, batch.finishing = BatchState.RUNNING, None, None
            batch.owner = batch.owned_until = None
            touch(batch)
        self._signals.changed(claim.batch_id)
        self._signals.to_send.set()


def _count(batch: Batch, summary: BatchSummary) -> None:
    """Sets the counters of a locked batch to what its manifest has."""
    counts = summary.counts
    batch.drawn, batch.failed = counts.drawn, counts.failed
    batch.pictures = counts.pictures
