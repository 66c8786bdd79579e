"""Clients that submit too much, cancel, or go away."""

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from faults.accounting import Submission
from faults.layout import STAGE_NAMES, STAGES
from faults.matrix import Trial, row, sleeping
from faults.system import PATIENCE, System
from harness.waiting import wait_until
from smalti.client import Client
from smalti.errors import OverloadedError, SmaltiError
from smalti.messages import Stage
from smalti.rpc.settings import RpcSettings
from smalti.v1 import job_pb2

OPEN_JOBS = 400
MAX_GROWTH = 128 * 2**20
"""Bytes by which the memory of a gateway may grow under ten thousand jobs."""
CALLERS = 32


@row(
    "13",
    "10,000 jobs at once and no workers",
    "RESOURCE_EXHAUSTED above the limit, with the time after which to retry; bounded memory; accepted jobs are done",
    settings={"SMALTI_GATEWAY_OPEN_JOBS": str(OPEN_JOBS), "SMALTI_GATEWAY_LEASE": "120"},
    held=STAGES,
)
def burst(trial: Trial) -> None:
    """Many clients submit many jobs; then the workers start."""
    system, account = trial.system, trial.account
    limit = min(OPEN_JOBS, trial.burst // 2)
    before = _resident_bytes(system)
    numbers = itertools.count()
    began = time.monotonic()

    def call() -> None:
        with system.clients() as clients:
            while (number := next(numbers)) < trial.burst:
                client = clients[number % len(clients)]
                account.submit(f"row 13 {number}", seed=number, candidates=1, client=client)

    with ThreadPoolExecutor(CALLERS) as threads:
        for called in [threads.submit(call) for _ in range(CALLERS)]:
            called.result()
    seconds = time.monotonic() - began
    grown = max(after - first for after, first in zip(_resident_bytes(system), before, strict=True))
    accepted = [each for each in account.submissions if each.job]
    refused = [each for each in account.submissions if not each.job]
    trial.notes.append(
        f"{len(accepted)} accepted and {len(refused)} refused in {seconds:.0f} s; "
        f"{'the gateway' if len(before) == 1 else 'a gateway'} grew by {grown / 2**20:.0f} MiB"
    )
    trial.expect(len(accepted) == OPEN_JOBS, f"{len(accepted)} were accepted, not {OPEN_JOBS}")
    for each in refused:
        good = isinstance(each.refused, OverloadedError) and each.refused.retry_after > 0
        trial.expect(good, f"{each.prompt!r} was refused with {each.refused!r}")
    trial.expect(grown < MAX_GROWTH, f"the gateway grew by {grown / 2**20:.0f} MiB")
    waiting = system.waiting(Stage.ENCODE)
    trial.expect(waiting <= 128, f"{waiting} messages wait in the broker")
    system.release(*STAGES)
    trial.expect_states("succeeded", *accepted)
    ends = [each.end.end_time.ToNanoseconds() for each in accepted[:limit] if each.end]
    quarter = len(ends) // 4
    trial.expect(
        max(ends[:quarter], default=0) < max(ends[-quarter:], default=1),
        "the first jobs were not done first",
    )


def _resident_bytes(system: System) -> list[int]:
    """Returns the resident memory of each gateway."""
    return [system.resident_bytes(name) for name in system.gateways]


_CANCELLED = {
    stage: sleeping("row 14", f"{stage}.after-read", 3, "cancelled") for stage in STAGE_NAMES.values()
}
_EXPIRED = sleeping("row 14", "decode.after-read", 6, "expires")
_WATCHED = sleeping("row 14", "decode.after-read", 2, "watched")


@row(
    "14",
    "cancel in every state; time limit; a client that goes away",
    "later stages are skipped; slots are free within one dispatch; a job continues without its client",
    failpoints=(*(failpoint for failpoint, _ in _CANCELLED.values()), _EXPIRED[0], _WATCHED[0]),
)
def taken_back(trial: Trial) -> None:
    """Cancels a job in the queue, at each stage and after its end; lets one expire, and one lose its client."""
    system, account = trial.system, trial.account
    with system.held("encoder"):
        queued = account.submit("row 14 cancelled in the queue")
        _cancel(trial, queued)
    cancelled = {"": queued}
    for stage, (failpoint, prompt) in _CANCELLED.items():
        cancelled[stage] = account.submit(prompt)
        system.wait_until_reached(failpoint)
        _cancel(trial, cancelled[stage])
    expired = account.submit(_EXPIRED[1], time_limit=4.0)
    watched = _watch_and_leave(trial)
    ended = account.submit("row 14 cancelled after its end")
    trial.expect_states("succeeded", watched, ended)
    with system.client() as client:
        trial.expect(
            client.cancel(ended.job).state == job_pb2.JOB_STATE_SUCCEEDED, "a job was cancelled after its end"
        )
    trial.expect_states("cancelled", *cancelled.values())
    trial.expect_states("expired", expired)
    _free_slots(trial)
    # The stages that slept are awake by now.
    account.settle(account.submit("row 14 the last"))
    order = ["", *STAGE_NAMES.values()]
    counts = system.executions()
    for stage, submission in (*cancelled.items(), ("decode", expired)):
        late = [
            name
            for (job, name, _) in counts
            if job == submission.job and order.index(name) >= order.index(stage)
        ]
        trial.expect(not late, f"{submission.prompt!r}: {', '.join(late)} ran nevertheless")


def _cancel(trial: Trial, submission: Submission) -> None:
    with trial.system.client() as client:
        state = client.cancel(submission.job).state
    trial.expect(state == job_pb2.JOB_STATE_CANCELLED, f"{submission.prompt!r} was not cancelled")


def _watch_and_leave(trial: Trial) -> Submission:
    """A client watches its job, and its connection ends."""
    submission = trial.account.submit(_WATCHED[1])
    client = Client(trial.system.gateway.url, retry_seconds=0, settings=RpcSettings(attempts=1))
    seen = threading.Event()

    def watch() -> None:
        try:
            for _ in client.watch(submission.job):
                seen.set()
        except (SmaltiError, ValueError):
            return  # Its channel was closed.

    watching = threading.Thread(target=watch)
    watching.start()
    trial.expect(seen.wait(PATIENCE), "a watch yielded nothing")
    client.close()
    watching.join(PATIENCE)
    return submission


def _free_slots(trial: Trial) -> None:
    """Cancels a job that fills all slots, while every dispatch takes a second."""
    system, account = trial.system, trial.account
    with system.failing("generator", "generate.engine-step=sleep:1"):
        full = account.submit("row 14 fills the slots", candidates=16)
        wait_until(lambda: system.metric("generator", "slots_active") > 0, PATIENCE)
        before = system.metric("generator", "engine_step_seconds_count")
        _cancel(trial, full)
        wait_until(lambda: system.metric("generator", "slots_active") == 0, PATIENCE)
        dispatches = system.metric("generator", "engine_step_seconds_count") - before
        trial.notes.append(f"dispatches until the slots were free: {dispatches:.0f}")
        # The running dispatch, and one that started before the marker was found.
        trial.expect(dispatches <= 2, f"dispatches until the slots were free: {dispatches:.0f}")
        trial.expect_states("cancelled", full)
