"""Workers that crash, hang, or are asked to stop."""

import signal
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from faults.layout import STAGE_NAMES, STAGES
from faults.load import under_load
from faults.matrix import Trial, killing, row, sleeping
from faults.system import PATIENCE, System
from harness.queue import dead
from harness.waiting import wait_until
from smalti.messages import Stage

POINTS = ("after-read", "engine-step", "before-write", "after-write", "after-publish")

_AT_WORK = {service: sleeping("row 1", f"{STAGE_NAMES[service]}.after-read", 60) for service in STAGES}


@row(
    "1",
    "kill -9 of each worker in the middle of its work",
    "the work is done again after the restart, with the same bytes",
    failpoints=tuple(failpoint for failpoint, _ in _AT_WORK.values()),
)
def killed_at_work(trial: Trial) -> None:
    """Kills each stage while it sleeps over a job."""
    submitted = [trial.account.submit(prompt) for _, prompt in _AT_WORK.values()]
    for service, (failpoint, _) in _AT_WORK.items():
        trial.system.wait_until_reached(failpoint)
        began = time.time()
        trial.system.kill(service)
        end = trial.system.wait_for_end(service, since=began)
        trial.expect(end.code == -9, f"{service} ended with {end.code}")
    trial.expect_states("succeeded", *submitted)


# The generator's step belongs to no job, so it is killed there as in row 4.
_BETWEEN = [
    killing("row 2", f"{stage}.{point}")
    for stage in STAGE_NAMES.values()
    for point in POINTS
    if (stage, point) != ("generate", "engine-step")
]


@row(
    "2",
    "kill -9 of each worker between read, compute, write, publish and acknowledge",
    "the work may be done twice, with one result",
    failpoints=tuple(failpoint for failpoint, _ in _BETWEEN),
)
def killed_between(trial: Trial) -> None:
    """Submits a job for every point at which its worker kills itself; then kills the generator in its step."""
    kill_between(trial, _BETWEEN)
    with trial.system.failing("generator", "generate.engine-step=kill@1"):
        last = trial.account.submit("row 2 the generator's step is killed")
        trial.expect_states("succeeded", last)
    trial.expect(trial.system.reached("generate.engine-step=kill@1"), "the generator's step was not reached")


def kill_between(trial: Trial, killings: Sequence[tuple[str, str]]) -> None:
    """Submits jobs over which workers kill themselves; takes pairs of failpoint and prompt."""
    submitted = [trial.account.submit(prompt) for _, prompt in killings]
    trial.expect_states("succeeded", *submitted)
    for failpoint, _ in killings:
        trial.expect(trial.system.reached(failpoint), f"{failpoint} was not reached")


_UNDER_LOAD = tuple(f"{stage}.before-write=sleep:0.2?prompt=row 3" for stage in STAGE_NAMES.values())


@row(
    "3",
    "SIGTERM to every process, one after the other, under load",
    "nothing fails; exit code 0 within the grace period",
    failpoints=_UNDER_LOAD,
)
def told_to_end(trial: Trial) -> None:
    """Submits jobs while every process is stopped and restarted."""
    system = trial.system
    with under_load(trial, "row 3", candidates=4):
        for name in (*STAGES, *system.gateways):
            # Wait until work is in progress.
            wait_until(partial(_works, system, name), PATIENCE)
            began = time.time()
            system.processes[name].signal(signal.SIGTERM)
            end = system.wait_for_end(name, since=began)
            trial.expect(end.code == 0, f"{name} ended with {end.code}")
            trial.notes.append(f"{name} ended after {end.when - began:.1f} s")
            system.wait_until_serving(name)
    trial.expect_states("succeeded")


def _works(system: System, name: str) -> bool:
    return system.metric(name, "requests_running") > 0


_RAISES = "decode.engine-step=raise@2?prompt=row 4 decode.engine-step raises"
_HANGS = "rank.engine-step=hang@1?prompt=row 4 rank.engine-step hangs"
_DEAD = "generate.engine-step=raise@5"


@row(
    "4",
    "engine that raises, or hangs",
    "one that raises goes on, and the work is done; one that hangs, or fails without work too, is NOT_SERVING and ends "
    "with code 1, and the work is done after the restart",
    failpoints=(_RAISES, _HANGS),
)
def engine_fails(trial: Trial) -> None:
    """The decoder raises, the ranker hangs; the generator raises once, then without requests too, and hangs."""
    system, began = trial.system, time.time()
    raises = trial.account.submit(_RAISES.partition("prompt=")[2])
    trial.expect_states("succeeded", raises)
    _watch_the_end(trial, "ranker", _HANGS.partition("prompt=")[2])
    with system.failing("generator", "generate.engine-step=raise@1"):
        once = trial.account.submit("row 4 the generator raises once")
        trial.expect_states("succeeded", once)
    ended = [end.name for end in system.ends if end.when >= began and end.code]
    trial.expect(ended == ["ranker"], f"processes ended: {', '.join(ended)}")
    for failpoint in (_DEAD, "generate.engine-step=hang@1"):
        with system.failing("generator", failpoint):
            _watch_the_end(trial, "generator", f"row 4 {failpoint}")
    trial.expect_states("succeeded")


def _watch_the_end(trial: Trial, name: str, prompt: str) -> None:
    """Submits a job, and watches the health of a service until its process has ended."""
    system, began = trial.system, time.time()
    with ThreadPoolExecutor(1) as threads:
        watching = threads.submit(system.processes[name].states, PATIENCE)
        submission = trial.account.submit(prompt)
        seen = watching.result()
    end = system.wait_for_end(name, since=began)
    trial.expect(end.code == 1, f"{name} ended with {end.code}")
    trial.expect(seen == ["SERVING", "NOT_SERVING"], f"the health of {name} was {' '.join(seen)}")
    trial.expect_states("succeeded", submission)


_KILLER = "row 9 kills every worker"


@row(
    "9",
    "prompt that kills its worker each time",
    "its job fails with a reason, its message is in the dead-letter queue; its neighbours succeed",
    failpoints=(f"generate.before-write=kill?prompt={_KILLER}",),
)
def deadly_prompt(trial: Trial) -> None:
    """One job crashes the generator each time; others wait in the same queue."""
    system, account = trial.system, trial.account
    dead(system.broker_settings(), Stage.GENERATE)
    neighbours = account.submit_many([f"row 9 before {number}" for number in range(trial.jobs // 2)])
    killer = account.submit(_KILLER)
    neighbours += account.submit_many([f"row 9 after {number}" for number in range(trial.jobs // 2)])
    began = time.time()
    trial.expect_states("failed", killer)
    trial.expect_states("succeeded", *neighbours)
    if killer.end:
        trial.expect("workers" in killer.end.error.message, f"it failed with {killer.end.error.message!r}")
    found = dead(system.broker_settings(), Stage.GENERATE)
    trial.expect(bool(found), "the message is not in the dead-letter queue")
    kills = sum(end.name == "generator" and end.code == -9 and end.when >= began for end in system.ends)
    trial.expect(kills <= 3, f"the generator died {kills} times")
    trial.notes.append(f"the generator died {kills} times, and {len(found)} messages are in generate.dead")


_RAISING_SEED = 666
_UNDECODABLE = "row 9 the decoder raises"


@row(
    "9 raises",
    "prompt over which an engine raises each time",
    "its job fails with a reason; no process ends, no neighbour fails or loses an attempt",
    failpoints=(
        f"generate.engine-request=raise?seed={_RAISING_SEED}",
        f"decode.engine-step=raise?prompt={_UNDECODABLE}",
    ),
)
def raising_prompt(trial: Trial) -> None:
    """One job raises in the generator's loop, one in the decoder; others are in the same batch and queue."""
    system, account, began = trial.system, trial.account, time.time()
    neighbours = account.submit_many([f"row 9 beside {number}" for number in range(trial.jobs // 2)])
    guilty = [account.submit("row 9 the generator raises", seed=_RAISING_SEED), account.submit(_UNDECODABLE)]
    neighbours += account.submit_many([f"row 9 behind {number}" for number in range(trial.jobs // 2)])
    trial.expect_states("failed", *guilty)
    trial.expect_states("succeeded", *neighbours)
    for each in guilty:
        if each.end:
            trial.expect("no other" in each.end.error.message, f"it failed with {each.end.error.message!r}")
    ended = [end.name for end in system.ends if end.when >= began]
    trial.expect(not ended, f"processes ended: {', '.join(ended)}")
    lost = sum(system.metric(name, "lease_losses_total") for name in system.gateways)
    trial.notes.append(f"no process ended, and {lost:.0f} leases were lost")


_SAME = "row 19 the same request"


@row(
    "19",
    "the same request alone, among others, and after a redelivery",
    "the same files",
)
def same_request(trial: Trial) -> None:
    """Submits a request four times and compares the files of the pictures."""
    system, account = trial.system, trial.account
    alone = account.submit(_SAME, seed=7, candidates=6)
    account.settle(alone)
    company = account.submit_many([f"row 19 company {number}" for number in range(trial.jobs)])
    among = account.submit(_SAME, seed=7, candidates=6)
    account.submit_many([f"row 19 more {number}" for number in range(trial.jobs // 2)])
    account.settle(among, *company)
    with system.failing("generator", f"generate.before-write=kill@2?prompt={_SAME}"):
        redelivered = account.submit(_SAME, seed=7, candidates=6)
        account.settle(redelivered)
    trial.expect_states("succeeded")
    files = {
        tuple(sorted((picture.candidate, picture.sha256, picture.score) for picture in each.end.pictures))
        for each in (alone, among, redelivered)
        if each.end
    }
    trial.expect(len(files) == 1, f"there are {len(files)} different sets of files")
