"""The refiner, which a system may lack: killed, away, with a failing engine; its objects damaged; jobs cancelled."""

from faults.layout import STAGES
from faults.matrix import Trial, killing, row, sleeping
from faults.rows.store import HARMS, harm_between
from faults.rows.workers import POINTS
from harness.waiting import wait_until

_KILLED = [killing("row 20", f"refine.{point}") for point in POINTS]
_RAISES = "refine.engine-step=raise@1?prompt=row 20 the engine raises"
_HARMED = {
    (stage, harm): sleeping("row 20", f"{stage}.after-write", 3, harm)
    for stage in ("rank", "refine")
    for harm in HARMS
}
_TAKEN_BACK = sleeping("row 20", "refine.after-read", 3, "taken back")


@row(
    "20",
    "refiner killed between its steps, away, or with a failing engine; its pictures missing, damaged or replaced",
    "the same refined pictures; jobs without a second pass do not wait for it",
    failpoints=(
        *(failpoint for failpoint, _ in _KILLED),
        _RAISES,
        *(failpoint for failpoint, _ in _HARMED.values()),
        _TAKEN_BACK[0],
    ),
    settings={"SMALTI_GATEWAY_REFINER": "1"},
    services=(*STAGES, "refiner"),
)
def refiner_fails(trial: Trial) -> None:
    """Submits jobs with a second pass for each fault, and some without one while the refiner is away."""
    system, account = trial.system, trial.account
    killed = [account.submit(prompt, refine=True) for _, prompt in _KILLED]
    raising = account.submit(_RAISES.partition("prompt=")[2], refine=True)
    trial.expect_states("succeeded", *killed, raising)
    for failpoint in (*(failpoint for failpoint, _ in _KILLED), _RAISES):
        trial.expect(system.reached(failpoint), f"{failpoint} was not reached")
    with system.held("refiner"):
        waiting = account.submit_many(
            [f"row 20 away {number}" for number in range(trial.jobs // 4)], refine=True
        )
        without = account.submit_many([f"row 20 without {number}" for number in range(trial.jobs // 4)])
        trial.expect_states("succeeded", *without)
        trial.expect(not any(each.end for each in waiting), "a picture was refined without a refiner")
    for harm in HARMS:
        harm_between(trial, {stage: _HARMED[stage, harm] for stage in ("rank", "refine")}, harm, refine=True)
    taken_back = account.submit(_TAKEN_BACK[1], refine=True)
    system.wait_until_reached(_TAKEN_BACK[0])
    with system.client() as client:
        client.cancel(taken_back.job)
    wait_until(lambda: system.metric("refiner", "cancelled_total") > 0)
    trial.expect_states("cancelled", taken_back)
    trial.expect_states("succeeded", *(each for each in account.submissions if each is not taken_back))
