"""A broker that dies, hangs, or does not answer; messages that come more than once, or never should have."""

import time

from faults.matrix import Trial, row

PAUSE_SECONDS, SHORT_PAUSE_SECONDS = 30.0, 5.0


@row(
    "5",
    "broker killed and started again; stopped for 30 s",
    "no accepted job is lost; submitting goes on",
)
def broker_away(trial: Trial) -> None:
    """Jobs are asked for before, while and after the broker is away."""
    system, account = trial.system, trial.account
    account.submit_many([f"row 5 before {number}" for number in range(trial.jobs)])
    system.broker.kill()
    account.submit_many([f"row 5 killed {number}" for number in range(trial.jobs // 2)])
    system.broker.start()
    account.submit_many([f"row 5 back {number}" for number in range(trial.jobs // 2)])
    system.broker.pause()
    began = time.monotonic()
    account.submit_many([f"row 5 paused {number}" for number in range(trial.jobs // 2)])
    trial.notes.append(
        f"{trial.jobs // 2} jobs were accepted in {time.monotonic() - began:.1f} s while the broker hung"
    )
    time.sleep(PAUSE_SECONDS if trial.long else SHORT_PAUSE_SECONDS)
    system.broker.resume()
    trial.expect_states("succeeded")
