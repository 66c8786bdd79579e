"""A batch beside interactive jobs."""

import statistics
import time
from typing import Final

from faults.matrix import Trial, row
from faults.rows.batches.settings import SETTINGS, prompts_of
from faults.system import PATIENCE
from smalti.client import has_ended

MAX_SECONDS: Final = 10.0
"""Time in which a job ends beside a batch, on a busy machine; the batch takes longer."""


@row(
    "36",
    "a batch that fills all workers, beside interactive jobs",
    "the jobs go first; the batch fills what they leave",
    settings=SETTINGS,
)
def beside_jobs(trial: Trial) -> None:
    """Draws jobs one after the other, first alone and then beside a batch, and compares how long they take."""
    batches = trial.batches
    count = max(6, trial.jobs // 2)
    alone = [_seconds(trial, f"row 36 alone {number}") for number in range(count)]
    prompts = prompts_of("row 36", 1600 if trial.long else 800)
    batch = batches.submit("row 36", prompts, shard_prompts=16)
    batches.wait_until(batch, lambda now: now.progress.candidates_generated > 0)
    beside = [_seconds(trial, f"row 36 beside {number}") for number in range(count)]
    now = batches.now(batch)
    trial.expect(
        now.progress.shards_ended < now.progress.shards, "the batch ended before the jobs; it must be larger"
    )
    trial.expect(max(beside) < MAX_SECONDS, f"a job beside the batch took {max(beside):.1f} s")
    trial.notes.append(
        f"a job took {statistics.median(alone):.2f} s alone (median of {count}; at most {max(alone):.2f} s), "
        f"and {statistics.median(beside):.2f} s beside a batch (at most {max(beside):.2f} s)"
    )
    trial.expect_states("succeeded")
    trial.expect_batches("succeeded", batch)


def _seconds(trial: Trial, prompt: str) -> float:
    """Draws a job, and returns how long it took."""
    began = time.monotonic()
    submission = trial.account.submit(prompt)
    with trial.system.client() as client:
        for job in client.watch(submission.job):
            if has_ended(job) or time.monotonic() - began > PATIENCE:
                break
    return time.monotonic() - began
