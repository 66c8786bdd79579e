"""Workers that crash, or are asked to stop, while they work on shards."""

import signal
import time
from typing import Final

from faults.batches import SHARD_PROMPTS
from faults.layout import STAGE_NAMES, STAGES
from faults.matrix import Trial, row
from faults.rows.batches.settings import SETTINGS, prompts_of
from faults.rows.workers import POINTS
from faults.system import PATIENCE
from harness.waiting import wait_until

# One shard for each point, so that no shard crashes its workers more than once.
_PLACES: Final = [
    (stage, point)
    for stage in STAGE_NAMES.values()
    for point in POINTS
    # The generator's step belongs to no shard.
    if (stage, point) != ("generate", "engine-step")
]
_KILLED: Final = [
    f"{stage}.shard-{point}=kill@1?shard={number:05d}" for number, (stage, point) in enumerate(_PLACES)
]


@row(
    "26",
    "kill -9 of each worker between read, compute, write, publish and acknowledge of its work for a shard",
    "every prompt is drawn once; the files are those of a run without faults",
    failpoints=tuple(_KILLED),
    settings=SETTINGS,
)
def killed(trial: Trial) -> None:
    """Draws a batch in which every shard kills a worker once, and the same batch undisturbed."""
    batches = trial.batches
    prompts = prompts_of("row 26", SHARD_PROMPTS * len(_KILLED))
    disturbed = batches.submit("row 26 disturbed", prompts)
    trial.expect_batches("succeeded", disturbed)
    for failpoint in _KILLED:
        trial.expect(trial.system.reached(failpoint), f"{failpoint} was not reached")
    calm = batches.submit("row 26 calm", prompts)
    trial.expect_batches("succeeded", calm)
    trial.expect_same_files(disturbed, calm)


@row(
    "27",
    "SIGTERM to every worker while it works on shards; the generator's step killed",
    "the shards are given back; exit code 0 within the grace period; nothing fails",
    settings=SETTINGS,
)
def told_to_end(trial: Trial) -> None:
    """Stops each worker while a batch is drawn, and kills the generator in its step."""
    system, batches = trial.system, trial.batches
    prompts = prompts_of("row 27", 10 * SHARD_PROMPTS)
    for name in STAGES:
        batch = batches.submit(f"row 27 {name}", prompts)
        wait_until(lambda name=name: system.metric(name, "requests_running") > 0, PATIENCE)  # type: ignore[misc]
        began = time.time()
        system.processes[name].signal(signal.SIGTERM)
        end = system.wait_for_end(name, since=began)
        trial.expect(end.code == 0, f"{name} ended with {end.code}")
        trial.notes.append(f"{name} ended after {end.when - began:.1f} s")
        trial.expect_batches("succeeded", batch)
    step = "generate.engine-step=kill@1"
    with system.failing("generator", step):
        killed = batches.submit("row 27 generator killed", prompts)
        trial.expect_batches("succeeded", killed)
    trial.expect(system.reached(step), "the generator's step was not reached")
    trial.expect_same_files(*batches.submissions)
