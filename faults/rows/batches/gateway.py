"""Crashes of the gateway while it plans batches, sends and counts their shards, and finishes them."""

import itertools
import time
from collections import Counter
from typing import Final

from faults.batches import SHARD_PROMPTS, BatchSubmission
from faults.matrix import Trial, row
from faults.rows.batches.settings import SETTINGS, prompts_of
from faults.system import PATIENCE
from harness.proxy import NetworkFault
from harness.waiting import wait_until
from smalti.v1 import batch_pb2

_POINTS: Final = (
    *("after-batch", "after-checked", "before-shards", "after-shards", "after-planned"),
    *("after-shard-lease", "after-shard-publish", "after-shard-done", "before-manifest", "after-manifest"),
)
_KILLED: Final = {
    point: (f"gateway.{point}=kill@1?batch=row 28 {point}", f"row 28 {point}") for point in _POINTS
}


@row(
    "28",
    "gateway killed at each step of planning a batch, of sending and counting its shards, and of finishing it",
    "the batch goes on where it was; a repeated call with the same request_id gets the same batch; the same files",
    failpoints=tuple(failpoint for failpoint, _ in _KILLED.values()),
    settings=SETTINGS,
)
def killed(trial: Trial) -> None:
    """Submits a batch for every point at which the gateway kills itself, all at once."""
    system, batches = trial.system, trial.batches
    # More shards than the planner stores together, so that it is killed in the middle of cutting.
    prompts = prompts_of("row 28", 40)
    submitted = [
        batches.submit(name, prompts, shard_prompts=1 if "shards" in point else SHARD_PROMPTS)
        for point, (_, name) in _KILLED.items()
    ]
    # The gateway is killed meanwhile again and again.
    for each in submitted:
        wait_until(lambda each=each: each.batch or batches.ask(each), PATIENCE)  # type: ignore[misc]
    trial.expect_batches("succeeded", *submitted)
    with system.client(attempts=4, retry_seconds=60) as client:
        made = Counter(batch.request_id for batch in client.batches.list())
    for each in submitted:
        count = made[each.request_id]
        trial.expect(count == 1, f"{each.name!r} made {count} batches")
    for failpoint, _ in _KILLED.values():
        trial.expect(system.reached(failpoint), f"{failpoint} was not reached")
    for count in (1, SHARD_PROMPTS):
        trial.expect_same_files(*(each for each in submitted if each.shard_prompts == count))


@row(
    "29",
    "gateway killed again and again while it plans, draws and finishes batches",
    "the same files as without faults",
    settings=SETTINGS,
)
def killed_at_random(trial: Trial) -> None:
    """Kills all gateways in turn every few seconds until two batches have ended."""
    system, batches = trial.system, trial.batches
    prompts = prompts_of("row 29", 40)
    calm = batches.submit("row 29 calm", prompts)
    trial.expect_batches("succeeded", calm)
    disturbed = [batches.submit(f"row 29 disturbed {number}", prompts) for number in range(2)]
    kills = 4 if trial.long else 2
    for _, name in zip(range(kills), itertools.cycle(system.gateways), strict=False):
        began = time.time()
        system.kill(name)
        system.wait_for_end(name, since=began)
        system.wait_until_serving(name)
        time.sleep(1.0)  # Some of the work is done until the next one.
    trial.expect_batches("succeeded", *disturbed)
    trial.expect_same_files(calm, *disturbed)


@row(
    "29 other",
    "one of two gateways suspended, or cut off from everything, while it plans, sends and finishes",
    "the other one goes on, and the batch ends meanwhile; what the first one does when it is back changes nothing",
    settings=SETTINGS,
    gateways=2,
)
def one_is_away(trial: Trial) -> None:
    """Suspends each gateway in turn while a batch is drawn, and cuts the other off."""
    system, batches = trial.system, trial.batches
    prompts = prompts_of("row 29 other", 40)
    for away, other in itertools.permutations(system.gateways):
        paused = batches.submit(f"row 29 {away} suspended", prompts)
        system.processes[away].pause()
        try:
            _end_through(trial, paused, other)
        finally:
            system.processes[away].resume()
        system.wait_until_serving(away)
        with system.client(other) as client:
            cut = batches.submit(f"row 29 {away} cut off", prompts, client=client)
        with (
            system.faulty(away, "broker", NetworkFault(cut=True)),
            system.faulty(away, "store", NetworkFault(cut=True)),
            system.faulty(away, "database", NetworkFault(cut=True)),
        ):
            _end_through(trial, cut, other)
        system.wait_until_serving(away)
    trial.expect_batches("succeeded")
    trial.expect_same_files(*batches.submissions)


def _end_through(trial: Trial, batch: BatchSubmission, gateway: str) -> None:
    """Expects that a batch succeeds through a gateway."""
    began = time.monotonic()
    trial.batches.settle(batch, gateway=gateway)
    is_drawn = batch.end is not None and batch.end.state == batch_pb2.BATCH_STATE_SUCCEEDED
    trial.expect(is_drawn, f"{batch.name!r} is {batch.state}")
    trial.notes.append(f"{batch.name}: ended after {time.monotonic() - began:.1f} s")
