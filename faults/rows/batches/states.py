"""Pause, resume, cancel and expiry in every state of a batch."""

import time
from collections.abc import Callable
from typing import Final

from faults.batches import SHARD_PROMPTS, BatchSubmission
from faults.matrix import Trial, row
from faults.rows.batches.settings import SETTINGS, prompts_of
from smalti.client import Client
from smalti.errors import WrongStateError
from smalti.v1 import batch_pb2
from smalti.v1.batch_pb2 import Batch

_SLEEP: Final = 8
_POINTS: Final = {
    "planning": "gateway.after-checked=sleep:{seconds}@1?batch={name}",
    "finishing": "gateway.before-manifest=sleep:{seconds}@1?batch={name}",
    "finished": "gateway.after-manifest=sleep:{seconds}@1?batch={name}",
}
STATES: Final = ("planning", "running", "paused", "finishing", "finished")
"""The states in which calls are made; in the last one everything is written, but the database does not say so yet."""
_STATE_OF: Final = {
    "planning": batch_pb2.BATCH_STATE_PLANNING,
    "running": batch_pb2.BATCH_STATE_RUNNING,
    "paused": batch_pb2.BATCH_STATE_PAUSED,
    "finishing": batch_pb2.BATCH_STATE_FINISHING,
    "finished": batch_pb2.BATCH_STATE_FINISHING,
}


def _held(row_name: str) -> tuple[str, ...]:
    """Returns failpoints that hold batches with these names in a state for a while."""
    return tuple(point.format(seconds=_SLEEP, name=f"{row_name} {state}") for state, point in _POINTS.items())


def _begin(trial: Trial, row_name: str, state: str) -> BatchSubmission:
    """Submits a batch, and waits until it is in a state in which it stays for a while."""
    system, batches = trial.system, trial.batches
    name = f"{row_name} {state}"
    count = 40 if state in ("running", "paused") else 2
    batch = batches.submit(name, prompts_of(row_name, count * SHARD_PROMPTS))
    if state in _POINTS:
        system.wait_until_reached(_POINTS[state].format(seconds=_SLEEP, name=name))
        return batch
    batches.wait_until(batch, lambda now: now.progress.shards_ended > 0)
    if state == "paused":
        _call(trial, batch, lambda client: client.batches.pause(batch.batch))
    return batch


def _call(trial: Trial, batch: BatchSubmission, call: Callable[[Client], Batch]) -> Batch:
    with trial.system.client(attempts=4, retry_seconds=60) as client:
        return call(client)


@row(
    "34",
    "a batch paused, resumed and cancelled in every state",
    "a paused batch begins no shard, and goes on as if nothing had been; a cancelled one keeps what is drawn, with a "
    "manifest of it and without _SUCCESS; one of which everything is drawn succeeds",
    failpoints=(*_held("row 34 paused while"), *_held("row 34 cancelled while")),
    settings=SETTINGS,
)
def taken_back(trial: Trial) -> None:
    """Pauses and resumes one batch in each state, and cancels another one."""
    batches = trial.batches
    for state in STATES:
        _pause(trial, state)
        _cancel(trial, state)
    ended = batches.submit("row 34 has ended", prompts_of("row 34", SHARD_PROMPTS))
    trial.expect_batches("succeeded", ended)
    same = _call(trial, ended, lambda client: client.batches.cancel(ended.batch))
    trial.expect(same.state == batch_pb2.BATCH_STATE_SUCCEEDED, "a batch was cancelled after its end")
    for call in ("pause", "resume"):
        try:
            _call(trial, ended, lambda client, call=call: getattr(client.batches, call)(ended.batch))  # type: ignore[misc]
        except WrongStateError:
            continue
        trial.problems.append(f"{call} of a batch that has ended was accepted")


def _pause(trial: Trial, state: str) -> None:
    batch = _begin(trial, "row 34 paused while", state)
    paused = _call(trial, batch, lambda client: client.batches.pause(batch.batch))
    expected = _STATE_OF[state] if state in ("finishing", "finished") else batch_pb2.BATCH_STATE_PAUSED
    trial.expect(paused.state == expected, f"{batch.name!r} is {paused.state} after pause")
    if state in ("running", "paused"):
        trial.batches.wait_until(batch, lambda now: now.progress.shards_in_flight == 0)
        before = trial.batches.now(batch).progress.shards_ended
        time.sleep(2.0)
        after = trial.batches.now(batch).progress.shards_ended
        trial.expect(
            before == after, f"{batch.name!r}: {after - before} shards were begun while it was paused"
        )
    resumed = _call(trial, batch, lambda client: client.batches.resume(batch.batch))
    trial.expect(resumed.state != batch_pb2.BATCH_STATE_PAUSED, f"{batch.name!r} was not resumed")
    trial.expect_batches("succeeded", batch)


def _cancel(trial: Trial, state: str) -> None:
    batch = _begin(trial, "row 34 cancelled while", state)
    began = time.monotonic()
    _call(trial, batch, lambda client: client.batches.cancel(batch.batch))
    # While it is finished, everything is drawn.
    trial.expect_batches("succeeded" if state in ("finishing", "finished") else "cancelled", batch)
    trial.notes.append(f"{batch.name}: ended after {time.monotonic() - began:.1f} s")
    if batch.end is not None and state == "planning":
        trial.expect(not trial.batches.listed(batch), f"{batch.name!r} has files")


_EXPIRY_SECONDS: Final = 60.0
"""The shortest time limit of a batch."""
_PLANNED_LATE: Final = f"gateway.after-checked=sleep:{_EXPIRY_SECONDS + 5:g}@1?batch=row 35 planning"


@row(
    "35",
    "a batch whose time is over while it is planned, drawn, or paused",
    "it is EXPIRED; what is drawn stays, with a manifest of it",
    failpoints=(_PLANNED_LATE,),
    settings=SETTINGS,
)
def expired(trial: Trial) -> None:
    """Lets three batches expire at the same time."""
    system, batches = trial.system, trial.batches
    paused = batches.submit("row 35 paused", prompts_of("row 35", 160), time_limit=_EXPIRY_SECONDS)
    batches.wait_until(paused, lambda now: now.progress.shards_ended > 0)
    _call(trial, paused, lambda client: client.batches.pause(paused.batch))
    planning = batches.submit("row 35 planning", prompts_of("row 35", 4), time_limit=_EXPIRY_SECONDS)
    running = batches.submit("row 35 running", prompts_of("row 35", 1000), time_limit=_EXPIRY_SECONDS)
    batches.wait_until(running, lambda now: now.progress.shards_ended > 0)
    with system.held("generator"):
        trial.expect_batches("expired", planning, running, paused)
