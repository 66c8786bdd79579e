"""Revisions of a model that replace each other."""

import signal
import time
from typing import Final

from faults.layout import FIRST, NEXT, STAGES
from faults.load import under_load
from faults.matrix import Trial, row
from faults.system import PATIENCE, System
from harness.waiting import wait_until

_OLD: Final = ("encoder", "generator")
_NEW: Final = ("encoder-next", "generator-next")
"""The revisions share the decoder and the ranker."""
SECONDS, SHORT_SECONDS = 8.0, 2.0
"""Time for which both revisions are served."""


@row(
    "25",
    "rollout of a revision under load: its workers start beside the old ones, which then end, and the gateways follow; "
    "and back, with the new workers killed",
    "no job fails, and each has the pictures of the revision that it says",
    services=(*STAGES, *_NEW),
    held=_NEW,
    models=dict.fromkeys(_NEW, NEXT),
    settings={"SMALTI_MESSAGES_WRITE": "3", "SMALTI_SERVICE_HELLO": "1"},
)
def rollout(trial: Trial) -> None:
    """Replaces one revision by the other, and takes that back."""
    system, account = trial.system, trial.account
    first, following = (system.models[name].revision for name in (FIRST, NEXT))
    wait_until(lambda: drawable(system) == {first}, PATIENCE)
    with under_load(trial, "row 25", interval=0.5, candidates=6) as load:
        load.during = "both are served"
        system.release(*_NEW)
        wait_until(lambda: drawable(system) == {first, following}, PATIENCE)
        time.sleep(SECONDS if trial.long else SHORT_SECONDS)
        load.during = "the old one ends"
        system.end(*_OLD)
        wait_until(lambda: drawable(system) == {following}, PATIENCE)
        load.during = "the gateways follow"
        for name in system.gateways:
            system.replace(name, SMALTI_MODEL=str(system.models[NEXT].path))
        load.during = "both are served again"
        system.release(*_OLD)
        wait_until(lambda: drawable(system) == {first, following}, PATIENCE)
        time.sleep(SECONDS if trial.long else SHORT_SECONDS)
        load.during = "the new one is killed"
        system.end(*_NEW, number=signal.SIGKILL)
        wait_until(lambda: drawable(system) == {first}, PATIENCE)
        for name in system.gateways:
            system.replace(name, SMALTI_MODEL=str(system.models[FIRST].path))
        load.during = "all is as before"
    trial.notes.append(f"the slowest call: {load.slowest:.1f} s")
    trial.expect_states("succeeded")
    drawn = [each.end.parameters.model.revision for each in account.submissions if each.end]
    counts = {name: drawn.count(system.models[name].revision) for name in (FIRST, NEXT)}
    trial.notes.append(f"jobs drawn with the old revision {counts[FIRST]}, with the new one {counts[NEXT]}")
    trial.expect(all(counts.values()), f"one of the revisions drew nothing: {counts}")


def drawable(system: System) -> set[str]:
    """Returns the revisions that every gateway says can be drawn now."""
    with system.clients(attempts=4, retry_seconds=60) as clients:
        return set.intersection(
            *(
                {model.reference.revision for model in client.models() if model.available}
                for client in clients
            )
        )
