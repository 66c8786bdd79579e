"""Workers that die, hang, or are told to end."""

import time

from faults.matrix import Trial, killing, row, sleeping
from faults.system import STAGE_NAMES, STAGES

POINTS = ("after-read", "engine-step", "before-write", "after-write", "after-publish")

_AT_WORK = {service: sleeping("row 1", f"{STAGE_NAMES[service]}.after-read", 60) for service in STAGES}


@row(
    "1",
    "kill -9 of each worker in the middle of its work",
    "the work is done again after the restart, with the same bytes",
    failpoints=tuple(failpoint for failpoint, _ in _AT_WORK.values()),
)
def killed_at_work(trial: Trial) -> None:
    """Each stage sleeps over one job, and is killed then."""
    submitted = [trial.account.submit(prompt) for _, prompt in _AT_WORK.values()]
    for service, (failpoint, _) in _AT_WORK.items():
        trial.system.wait_until_reached(failpoint)
        began = time.time()
        trial.system.kill(service)
        end = trial.system.wait_for_end(service, began)
        trial.expect(end.code == -9, f"{service} ended with {end.code}")
    trial.expect_states("succeeded", *submitted)


# Of the generator's step no job is known; it is killed there by row 4's way.
_BETWEEN = [
    killing("row 2", f"{stage}.{point}")
    for stage in STAGE_NAMES.values()
    for point in POINTS
    if (stage, point) != ("generate", "engine-step")
]


@row(
    "2",
    "kill -9 of each worker between read, compute, write, publish and acknowledge",
    "the work may be done twice; there is one result",
    failpoints=tuple(failpoint for failpoint, _ in _BETWEEN),
)
def killed_between(trial: Trial) -> None:
    """A job for every point at which its worker kills itself, all at once; then the generator in its step."""
    submitted = [trial.account.submit(prompt) for _, prompt in _BETWEEN]
    trial.expect_states("succeeded", *submitted)
    for failpoint, _ in _BETWEEN:
        trial.expect(trial.system.reached(failpoint), f"{failpoint} was not reached")
    with trial.system.failing("generator", "generate.engine-step=kill@1"):
        last = trial.account.submit("row 2 the generator's step is killed")
        trial.expect_states("succeeded", last)
    trial.expect(trial.system.reached("generate.engine-step=kill@1"), "the generator's step was not reached")
