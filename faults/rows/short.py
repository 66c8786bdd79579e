"""The most revealing faults, for every run of the tests: a minute in one system."""

import time
from typing import Final

from faults.matrix import Row, Trial, killing, row, sleeping
from faults.rows.broker import duplicates
from faults.rows.gateway import kill_gateway
from faults.rows.store import begun_again, harm_between
from faults.rows.workers import kill_between
from harness.waiting import wait_until
from smalti.v1 import job_pb2

_KILLED = [
    killing("short", point) for point in ("generate.before-write", "decode.after-write", "rank.after-publish")
]


@row(
    "workers",
    "workers killed before the write, before the publish, and before the acknowledgement",
    "the work is done again",
    failpoints=tuple(failpoint for failpoint, _ in _KILLED),
)
def workers(trial: Trial) -> None:
    """Three workers kill themselves at the same time."""
    kill_between(trial, _KILLED)


@row("broker", "broker killed and started again; stopped for a moment", "nothing is lost")
def broker(trial: Trial) -> None:
    """Submits jobs before, while and after the broker is away."""
    system, account = trial.system, trial.account
    account.submit_many(["short before the broker is killed"] * 4)
    system.broker.kill()
    account.submit("short while there is no broker")
    system.broker.start()
    account.submit("short after the broker is back")
    system.broker.pause()
    account.submit("short while the broker hangs")
    time.sleep(1)  # The duration of the fault.
    system.broker.resume()
    trial.expect_states("succeeded")


_HARMED = {
    ("encode", "missing"): sleeping("short", "encode.after-write", 1.5, "missing"),
    ("generate", "damaged"): sleeping("short", "generate.after-write", 1.5, "damaged"),
    ("decode", "other"): sleeping("short", "decode.after-write", 1.5, "other"),
}


@row(
    "objects",
    "objects missing, damaged and replaced between the stages",
    "they are made again; no picture is wrong",
    failpoints=tuple(failpoint for failpoint, _ in _HARMED.values()),
)
def objects(trial: Trial) -> None:
    """Damages the output of three stages before the next one reads it."""
    before = begun_again(trial.system)
    for (stage, harm), sleeper in _HARMED.items():
        harm_between(trial, {stage: sleeper}, harm)
    trial.expect_states("succeeded")
    again = begun_again(trial.system) - before
    trial.expect(
        again >= len(_HARMED), f"chunks were restarted {again} times, for {len(_HARMED)} damaged objects"
    )


_DRAWING = sleeping("short", "generate.after-read", 2, "cancelled")


@row(
    "cancel",
    "cancelled during generation",
    "later stages are skipped",
    failpoints=(_DRAWING[0],),
)
def cancel(trial: Trial) -> None:
    """Cancels a job while the generator works on it."""
    system = trial.system
    cancelled = trial.account.submit(_DRAWING[1])
    system.wait_until_reached(_DRAWING[0])
    before = system.metric("generator", "cancelled_total")
    with system.client() as client:
        state = client.cancel(cancelled.job).state
    trial.expect(state == job_pb2.JOB_STATE_CANCELLED, "it was not cancelled")
    wait_until(lambda: system.metric("generator", "cancelled_total") > before)
    done = sorted(stage for job, stage, _ in system.executions() if job == cancelled.job)
    trial.expect(done == ["encode"], f"work was done for it: {', '.join(done)}")
    trial.expect_states("cancelled", cancelled)


_GATEWAY_KILLED = [
    killing("short", f"gateway.{point}") for point in ("after-accept", "after-lease", "after-result")
]


@row(
    "gateway",
    "gateway killed before it answers, before it sends, and before it ends a job",
    "nothing is lost; a repeated call gets the same job",
    failpoints=tuple(failpoint for failpoint, _ in _GATEWAY_KILLED),
)
def gateway(trial: Trial) -> None:
    """The gateway kills itself three times."""
    for failpoint, prompt in _GATEWAY_KILLED:
        kill_gateway(trial, failpoint, prompt)


SHORT: Final[tuple[Row, ...]] = (workers, broker, objects, duplicates, cancel, gateway)
