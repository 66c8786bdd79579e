"""Shards that crash their workers, or fail too often: they are halved until the one prompt is found.

The halves are drawn from the start, as jobs of their own. A single prompt is given up, which its row of the manifest
tells; it never ends the batch.
"""

import logging

from sqlalchemy import insert

from smalti.batches import BatchKeys, BatchPrompt, PromptResult, ShardFile, ShardRange
from smalti.errors import AttemptsExhaustedError, DamagedObjectError, MissingObjectError
from smalti.service import failpoints
from smalti.services.gateway.batches.lifecycle import (
    DRAWING_STATES,
    add_store_task,
    end,
    leased,
    lock,
    lock_drawn,
    new_shard,
    touch,
)
from smalti.services.gateway.batches.shards.completing import Results, complete
from smalti.services.gateway.batches.signals import BatchOutcome, BatchSignals
from smalti.services.gateway.database.tables import (
    Batch,
    BatchState,
    Shard,
    ShardState,
    StoreAction,
)
from smalti.services.gateway.jobs.context import GatewayContext
from smalti.storage import content_key, digest

log = logging.getLogger(__name__)


class Halving:
    """Halves shards; thread-safe."""

    def __init__(self, context: GatewayContext, signals: BatchSignals) -> None:
        self._context = context
        self._signals = signals

    def give_up(self, batch_id: str, shard: ShardRange, lease: int, problem: str) -> None:
        """Halves a shard, or gives up the prompt of one that has a single one.

        Args:
            batch_id: the batch.
            shard: the prompts.
            lease: the lease under which they have failed; nothing happens if it is not the current one.
            problem: why they have failed.

        Raises:
            UnavailableError: the database or the store does not answer.
        """
        found = self._load(batch_id, shard, lease)
        if found is None:
            return
        batch, row, prompts = found
        log.warning("shard %s of batch %s is given up: %s", shard.name, batch_id, problem)
        if shard.count > 1:
            self._halve(batch_id, shard, lease, prompts)
        else:
            self._give_up(batch, row, shard, prompts[0], problem)

    def end_if_lost(self, batch_id: str, shard: ShardRange, lease: int) -> bool:
        """Ends a batch if the prompts of a leased shard are lost, since nobody can write them again.

        Returns:
            Whether there is nothing to send any more: they are lost, or the lease is not the current one.

        Raises:
            UnavailableError: the database or the store does not answer.
        """
        return self._load(batch_id, shard, lease) is None

    def _load(
        self, batch_id: str, shard: ShardRange, lease: int
    ) -> tuple[Batch, Shard, list[BatchPrompt]] | None:
        """Returns a leased shard with its prompts; if they are lost, ends the batch, and returns None."""
        with self._context.database.read() as session:
            row = session.scalars(leased(batch_id, shard, lease)).one_or_none()
            batch = session.get(Batch, batch_id)
        if row is None or batch is None or batch.state not in DRAWING_STATES:
            return None
        key = BatchKeys(batch_id).shard(shard.number)
        try:
            return batch, row, shard.of(ShardFile.parse(key, self._context.store.get(key, sha256=row.sha256)))
        except (MissingObjectError, DamagedObjectError) as error:
            self._fail(batch_id, error)
            return None

    def _halve(self, batch_id: str, shard: ShardRange, lease: int, prompts: list[BatchPrompt]) -> None:
        now = self._context.clock()
        with self._context.database.write() as session:
            found = lock_drawn(session, batch_id, shard, lease)
            if found is None:
                return
            batch, row = found
            row.state, row.deadline = ShardState.HALVED, None
            first, second = shard.halves()
            halves = (first, prompts[: first.count]), (second, prompts[first.count :])
            session.execute(
                insert(Shard), [new_shard(batch_id, half, own, row.sha256) for half, own in halves]
            )
            # A copy of the message may come again, and would crash its worker.
            add_store_task(session, batch, row, StoreAction.END_SHARD, now)
            touch(batch)
        failpoints.reach("gateway.after-halved", job=BatchKeys(batch_id).job(shard), batch=batch.name)
        self._signals.tell_shard(batch_id, "halved")

    def _give_up(
        self, batch: Batch, row: Shard, shard: ShardRange, prompt: BatchPrompt, problem: str
    ) -> None:
        result = PromptResult.not_drawn(
            prompt,
            prompt.problem or problem,
            model=batch.model,
            revision=row.revision or batch.revision,
        )
        content = PromptResult.to_bytes([result])
        sha256 = digest(content)
        key = content_key(BatchKeys(batch.id).part(shard), sha256)
        self._context.store.put(key, content, content_type="application/jsonl")
        with self._context.database.write() as session:
            found = lock_drawn(session, batch.id, shard, row.lease)
            if found is None:
                return
            results = Results(sha256=sha256, failed=1)
            is_last = complete(session, *found, results, self._context.clock())
        self._signals.tell_shard(batch.id, "failed", failed=1, is_last=is_last)

    def _fail(self, batch_id: str, error: Exception) -> None:
        """Ends a batch whose prompts are lost."""
        log.error("the prompts of a shard are lost: %s", error, extra={"batch": batch_id})
        problem = AttemptsExhaustedError(f"{error}; it has the prompts of a shard. Create the batch again")
        outcome: BatchOutcome | None = None
        with self._context.database.write() as session:
            batch = lock(session, batch_id)
            if batch is not None and batch.state in DRAWING_STATES:
                outcome = end(session, batch, BatchState.FAILED, self._context.clock(), error=problem)
        if outcome is not None:
            self._signals.tell_end(outcome)
