"""Plans batches: reads and checks their inputs, and cuts them into shards.

Nothing is drawn before the whole input is checked. What is stored has a cursor, so that a gateway that is killed loses
no more than a few shards of work, and another one goes on. A batch whose input cannot be used leaves no shards.
"""

import hashlib
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final

from sqlalchemy import insert

from smalti.batches import BatchKeys, BatchPlan, BatchPrompt, EditSource, PlanCounts, PlannedShard
from smalti.errors import (
    DamagedObjectError,
    InvalidInputError,
    MissingObjectError,
    StoredFileNotFoundError,
)
from smalti.files import temporary_folder
from smalti.service import failpoints
from smalti.services.gateway.batches.answers import openai_options
from smalti.services.gateway.batches.claims import Claim, Claims
from smalti.services.gateway.batches.lifecycle import end, new_shard, touch
from smalti.services.gateway.batches.planning.charging import charge, max_prompt_of
from smalti.services.gateway.batches.planning.policing import Policing
from smalti.services.gateway.batches.signals import BatchOutcome, BatchSignals
from smalti.services.gateway.batches.spec import BatchParameters, parameters_of
from smalti.services.gateway.database.clock import to_microseconds
from smalti.services.gateway.database.tables import Batch, BatchState, Shard
from smalti.services.gateway.jobs.context import GatewayContext

log = logging.getLogger(__name__)

EditTokensOf = Callable[[Batch, EditSource], tuple[int, ...]]

TOGETHER: Final = 32
"""Shards that are stored by one transaction."""
WRITERS: Final = 8
"""Files of shards that are written at the same time."""
BLOCK_BYTES: Final = 2**20
TELL_SECONDS: Final = 2.0
"""Time between two reports of how many rows are checked."""


class Planner:
    """Plans batches; each thread plans one at a time."""

    def __init__(self, context: GatewayContext, signals: BatchSignals, claims: Claims) -> None:
        self._context = context
        self._database = context.database
        self._store = context.store
        self._signals = signals
        self._claims = claims
        self._policing = Policing(context)
        self.edit_tokens: EditTokensOf | None = None
        """Returns the image tokens that an edit keeps; None refuses edits."""

    def plan_next(self) -> bool:
        """Plans a batch that nobody plans; returns whether there was one.

        Raises:
            UnavailableError: the database or the store does not answer; it is planned later.
        """
        return self._claims.work(self._plan, Batch.planned.is_(None))

    def _plan(self, claim: Claim) -> None:
        with self._database.write() as session:
            batch = claim.lock(session)
        parameters = parameters_of(batch)
        with temporary_folder() as folder:
            file, sha256 = self._fetch(claim, batch, parameters, folder)
            plan = BatchPlan(
                open=lambda: file.open("rb"),
                format=parameters.input.format,
                defaults=parameters.defaults,
                columns=parameters.input.columns,
                ignore_columns=parameters.input.ignore_columns,
                skip_invalid=parameters.input.skip_invalid,
                shard_prompts=parameters.shard_prompts,
                openai=openai_options(self._context, batch),
                tokens_of=partial(self.edit_tokens, batch) if self.edit_tokens else None,
            )
            cursor = batch.cursor
            if cursor is None or "next" not in cursor:
                counts = plan.check(folder=folder, on_rows=_Reporter(self, claim))
                cursor = self._checked(claim, counts, sha256)
                failpoints.reach("gateway.after-checked", job=batch.id, batch=batch.name)
            if not batch.validate_only:
                self._cut(claim, batch, plan, first=cursor["next"])
        self._planned(claim)

    def _fetch(
        self, claim: Claim, batch: Batch, parameters: BatchParameters, folder: Path
    ) -> tuple[Path, str]:
        """Copies the input to a file here, which cannot change while it is read; returns it and its SHA-256."""
        source = parameters.input
        known = (batch.cursor or {}).get("sha256") or source.sha256
        target = folder / "input"
        try:
            if known is None:
                # Objects that others have written have no SHA-256 with them.
                known = self._hash(claim, source.object_key)
            self._store.get_file(source.object_key, target, sha256=known)
        except MissingObjectError:
            raise StoredFileNotFoundError(source.file_id or source.object_key) from None
        except DamagedObjectError:
            raise InvalidInputError(
                "input",
                f"{source.name} has changed, or is damaged, since the batch was created; create another one",
            ) from None
        claim.check()
        return target, known

    def _hash(self, claim: Claim, key: str) -> str:
        found = hashlib.sha256()
        with self._store.open_object(key) as file:
            while block := file.read(BLOCK_BYTES):
                claim.check()
                found.update(block)
        return found.hexdigest()

    def report(self, claim: Claim, rows: int) -> None:
        """Stores how many rows are checked."""
        claim.check()
        with self._database.write() as session:
            batch = claim.lock(session)
            batch.prompts = rows
            touch(batch)
        self._signals.changed(claim.batch_id)

    def _checked(self, claim: Claim, counts: PlanCounts, sha256: str) -> dict[str, Any]:
        cursor = {"next": 0, "sha256": sha256}
        with self._database.write() as session:
            batch = claim.lock(session)
            batch.prompts, batch.blank, batch.invalid = counts.prompts, counts.blank, counts.invalid
            batch.candidates, batch.pictures_planned = counts.candidates, counts.pictures
            batch.shards = -(-counts.prompts // parameters_of(batch).shard_prompts)
            batch.cursor = cursor
            touch(batch)
        self._signals.changed(claim.batch_id)
        return cursor

    def _cut(self, claim: Claim, batch: Batch, plan: BatchPlan, *, first: int) -> None:
        keys = BatchKeys(batch.id)
        max_prompt = max_prompt_of(self._context, batch.tenant)
        with ThreadPoolExecutor(WRITERS, thread_name_prefix="shards") as writers:
            shards = plan.shards(first)
            while group := list(islice(shards, TOGETHER)):
                claim.check()
                rows, refused = [], _Refused()
                allowed = [self._allowed(batch, shard, refused, max_prompt) for shard in group]
                refs = writers.map(
                    lambda shard: self._store.put(
                        keys.shard(shard.number), shard.to_bytes(), content_type="application/jsonl"
                    ),
                    allowed,
                )
                for shard, ref in zip(allowed, refs, strict=True):
                    rows.append(new_shard(batch.id, shard.range, shard.prompts, ref.sha256))
                failpoints.reach("gateway.before-shards", job=batch.id, batch=batch.name)
                with self._database.write() as session:
                    locked = claim.lock(session)
                    session.execute(insert(Shard), rows)
                    locked.candidates -= refused.candidates
                    locked.pictures_planned -= refused.pictures
                    locked.cursor = {**(locked.cursor or {}), "next": group[-1].number + 1}
                failpoints.reach("gateway.after-shards", job=batch.id, batch=batch.name)
                self._signals.rows_planned(sum(len(shard.prompts) for shard in group))

    def _allowed(
        self, batch: Batch, shard: PlannedShard, refused: "_Refused", max_prompt: int
    ) -> PlannedShard:
        """Returns a shard with the refusals of the operator's policy."""
        prompts: list[BatchPrompt] = []
        problems = self._policing.problems(batch, shard.prompts, max_prompt)
        for prompt, problem in zip(shard.prompts, problems, strict=True):
            if problem is not None:
                refused.add(prompt)
                prompt = prompt.model_copy(update={"problem": problem})
            prompts.append(prompt)
        return PlannedShard(number=shard.number, prompts=prompts)

    def _planned(self, claim: Claim) -> None:
        now = self._context.clock()
        outcome: BatchOutcome | None = None
        with self._database.write() as session:
            batch = claim.lock(session)
            if not batch.validate_only:
                charge(session, self._context, batch, now)
            batch.planned = to_microseconds(now)
            batch.owner = batch.owned_until = None
            if batch.validate_only:
                outcome = end(session, batch, BatchState.SUCCEEDED, now)
            else:
                if batch.state is BatchState.PLANNING:
                    batch.state = BatchState.RUNNING
                batch.trouble = None
                touch(batch)
        failpoints.reach("gateway.after-planned", job=batch.id, batch=batch.name)
        log.info("batch %s is planned", claim.batch_id)
        if outcome is not None:
            self._signals.tell_end(outcome)
        else:
            self._signals.changed(claim.batch_id)
            self._signals.to_send.set()


class _Refused:
    """What is not drawn of a group of shards, since the policy refuses it."""

    def __init__(self) -> None:
        self.candidates = 0
        self.pictures = 0

    def add(self, prompt: BatchPrompt) -> None:
        self.candidates += prompt.candidates
        self.pictures += prompt.n


class _Reporter:
    """Reports how many rows are checked, now and then; an `OnRows`."""

    def __init__(self, planner: Planner, claim: Claim) -> None:
        self._planner = planner
        self._claim = claim
        self._told = time.monotonic()

    def __call__(self, rows: int) -> None:
        self._claim.check()
        if time.monotonic() - self._told >= TELL_SECONDS:
            self._planner.report(self._claim, rows)
            self._told = time.monotonic()
