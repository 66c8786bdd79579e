"""Crashes of the gateway."""

import contextlib
import itertools
import time

from faults.matrix import Trial, killing, row
from harness.proxy import NetworkFault

_POINTS = (
    "gateway.after-accept",
    "gateway.after-lease",
    "gateway.after-publish",
    "gateway.after-ranked",
    "gateway.before-result",
    "gateway.after-result",
    "gateway.after-end",
)
_KILLED = [killing("row gateway", point) for point in _POINTS]


@row(
    "gateway",
    "gateway killed after accepting, before and after sending, and at each step of ending a job",
    "nothing is lost; a repeated call with the same request_id gets the same job",
    failpoints=tuple(failpoint for failpoint, _ in _KILLED),
)
def gateway_killed(trial: Trial) -> None:
    """Submits a job for every point at which the gateway kills itself, one after the other."""
    for failpoint, prompt in _KILLED:
        kill_gateway(trial, failpoint, prompt)


def kill_gateway(trial: Trial, failpoint: str, prompt: str) -> None:
    """Submits a job over which the gateway kills itself, then repeats the call as a client without an answer does."""
    began = time.time()
    submission = trial.account.submit(prompt)
    end = trial.system.wait_for_end(*trial.system.gateways, since=began)
    trial.expect(trial.system.reached(failpoint), f"{failpoint} was not reached")
    trial.system.wait_until_serving(end.name)
    with trial.system.client(attempts=4, retry_seconds=60) as client:
        trial.account.ask(submission, client)
        known = [job.id for job in client.list() if job.request_id == submission.request_id]
    trial.expect(known == [submission.job], f"{prompt!r} made the jobs {known}")
    trial.expect_states("succeeded", submission)


PAUSE_SECONDS = 20.0
"""Longer than a lease and than the database's timeouts."""


@row(
    "gateway paused",
    "gateway suspended for longer than its leases, and for longer than the database keeps its transaction",
    "nothing is lost, and no chunk loses an attempt",
)
def gateway_paused(trial: Trial) -> None:
    """Suspends the gateway twice under load; of several, first one, and then all."""
    system, account = trial.system, trial.account
    for turn, paused in enumerate((system.gateways[:1], system.gateways)):
        account.submit_many([f"row gateway {turn} before {number}" for number in range(trial.jobs // 2)])
        for name in paused:
            system.processes[name].pause()
        time.sleep(PAUSE_SECONDS)
        for name in paused:
            system.processes[name].resume()
        system.wait_until_serving(*paused)
    account.submit_many([f"row gateway after {number}" for number in range(trial.jobs // 2)])
    trial.expect_states("succeeded")


CUT_SECONDS = 60.0
"""Time within which jobs must end through the other gateway, on a busy machine."""


@row(
    "gateway cut off",
    "one of two gateways cut off from the broker, from the store, from the database, or suspended",
    "the other accepts jobs meanwhile, and they end; nothing is lost",
    gateways=2,
)
def gateway_cut_off(trial: Trial) -> None:
    """Cuts one gateway off, each in turn, while jobs of both run, and draws through the other."""
    system, account = trial.system, trial.account
    names = itertools.cycle(system.gateways)
    for server in ("broker", "store", "database", "anything"):
        away, other = next(names), next(names)
        next(names)  # So that each is harmed.
        about = f"row gateway, {away} without {server}"
        account.submit_many([f"{about}: before {number}" for number in range(trial.jobs // 2)])
        with contextlib.ExitStack() as harm:
            if server == "anything":
                system.processes[away].pause()
                harm.callback(system.processes[away].resume)
            else:
                harm.enter_context(system.faulty(away, server, NetworkFault(cut=True)))
            began = time.monotonic()
            with system.client(other) as client:
                during = [
                    account.submit(f"{about}: {number}", client=client) for number in range(trial.jobs // 4)
                ]
            account.settle(*during, seconds=CUT_SECONDS, gateway=other)
            trial.notes.append(
                f"without {server}: jobs of the other ended within {time.monotonic() - began:.1f} s"
            )
            for each in during:
                trial.expect(
                    each.state == "succeeded", f"{each.prompt!r} is {each.state} while {away} is away"
                )
        system.wait_until_serving(away)
        trial.expect_states("succeeded")
