"""Crashes of the gateway."""

import time

from faults.matrix import Trial, killing, row

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
    trial.system.wait_for_end("gateway", began)
    trial.expect(trial.system.reached(failpoint), f"{failpoint} was not reached")
    trial.system.wait_until_serving("gateway")
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
    """Suspends the gateway twice under load."""
    system, account = trial.system, trial.account
    for turn in range(2):
        account.submit_many([f"row gateway {turn} before {number}" for number in range(trial.jobs // 2)])
        system.gateway.pause()
        time.sleep(PAUSE_SECONDS)
        system.gateway.resume()
        system.wait_until_serving("gateway")
    account.submit_many([f"row gateway after {number}" for number in range(trial.jobs // 2)])
    trial.expect_states("succeeded")
