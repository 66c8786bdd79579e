"""Code of the last release beside the present code: in the queues, in the database, and during an update."""

import os
import signal
import subprocess
import sys
from typing import Any, Final

from faults.accounting import Submission
from faults.layout import STAGES
from faults.load import Load, under_load
from faults.matrix import Trial, row
from harness.releases import LAST

_GATEWAYS: Final = ("gateway", "gateway-2")
_ALL_STAGES: Final = (*STAGES, "refiner")
_SETTINGS: Final = {"SMALTI_GATEWAY_REFINER": "1"}
KINDS: Final[dict[str, dict[str, Any]]] = {
    "plain": {},
    "chunks": {"candidates": 9},
    "batch": {"priority": "batch", "candidates": 5},
    "refined": {"refine": True},
}
"""What is asked of jobs, so that messages of every kind are sent."""


@row(
    "23",
    "gateway of the last release, and workers of this version",
    "jobs of every kind end as ever, with the same files",
    services=_ALL_STAGES,
    settings=_SETTINGS,
    releases=dict.fromkeys(_GATEWAYS, LAST),
)
def old_gateway(trial: Trial) -> None:
    """Draws, cancels, and lets a job fail."""
    every_kind(trial, "row 23")


@row(
    "23 workers",
    "gateway of this version, and workers of the last release",
    "jobs of every kind end as ever, with the same files",
    services=_ALL_STAGES,
    settings=_SETTINGS,
    releases=dict.fromkeys(_ALL_STAGES, LAST),
)
def old_workers(trial: Trial) -> None:
    """Draws, cancels, and lets a job fail."""
    every_kind(trial, "row 23 workers")


@row(
    "23 together",
    "gateways and workers of the last release and of this version, all on one database and one broker",
    "jobs of every kind end as ever, with the same files, whichever gateway is asked",
    services=(*_ALL_STAGES, *(f"{name}-old" for name in _ALL_STAGES), "gateway-old"),
    settings=_SETTINGS,
    releases=dict.fromkeys((*(f"{name}-old" for name in _ALL_STAGES), "gateway-old"), LAST),
    database="postgres",
)
def together(trial: Trial) -> None:
    """Draws through both sorts of gateways at the same time; then the old ones are killed while they work."""
    system, account = trial.system, trial.account
    every_kind(trial, "row 23 together")
    with system.client("gateway-old") as old, system.client("gateway") as new:
        for turn in range(trial.jobs // 4):
            for name, client in (("old", old), ("new", new)):
                for kind, asked in KINDS.items():
                    account.submit(
                        f"row 23 {kind} {turn} through the {name} gateway", seed=turn, client=client, **asked
                    )
        # Each sees the jobs of the other.
        ids = {each.job for each in account.submissions}
        for name, client in (("old", old), ("new", new)):
            seen = {job.id for job in client.list()}
            trial.expect(ids <= seen, f"the {name} gateway does not list {len(ids - seen)} jobs")
    trial.expect_states("succeeded", *(each for each in account.submissions if not each.end))
    done = {
        sort: len(system.executions(*(f"{name}{end}" for name in _ALL_STAGES)))
        for sort, end in (("old", "-old"), ("new", ""))
    }
    trial.notes.append(f"pieces of work of the old workers {done['old']}, of the new ones {done['new']}")
    trial.expect(all(done.values()), f"work was done by one version alone: {done}")
    last = account.submit_many([f"row 23 the old ones are killed {number}" for number in range(trial.jobs)])
    for name in ("gateway-old", *(f"{name}-old" for name in _ALL_STAGES)):
        system.processes[name].held = True
        system.kill(name)
    trial.expect_states("succeeded", *last)
    system.release("gateway-old", *(f"{name}-old" for name in _ALL_STAGES))


def every_kind(trial: Trial, about: str) -> list[Submission]:
    """Submits jobs of every kind, cancels one, and waits until they have ended as they should."""
    system, account = trial.system, trial.account
    drawn = [
        account.submit(f"{about} {kind} {number}", seed=number, **asked)
        for number in range(max(1, trial.jobs // 8))
        for kind, asked in KINDS.items()
    ]
    with system.held("decoder"):
        cancelled = account.submit(f"{about} cancelled", candidates=8)
        with system.client() as client:
            client.cancel(cancelled.job)
    trial.expect_states("succeeded", *drawn)
    trial.expect_states("cancelled", cancelled)
    return drawn


MIGRATION: Final = "0008"
"""The step in which the command is killed: it changes the tables of jobs and chunks."""
_DATABASE: Final = "SMALTI_GATEWAY_DATABASE"


@row(
    "24",
    "update of a whole system of the last release under load, and back: database, gateways, workers, version 3 of the "
    "messages; the command that migrates is killed, and run twice at once",
    "no job fails, and none has other files",
    services=_ALL_STAGES,
    settings={**_SETTINGS, "SMALTI_GATEWAY_MIGRATE": "0"},
    releases=dict.fromkeys((*_GATEWAYS, *_ALL_STAGES), LAST),
)
def update(trial: Trial) -> None:
    """Replaces one process after the other, in the order of docs/upgrading.md, then in the reverse order."""
    system = trial.system
    # What workers do by it, to say hello, gateways of the release do not notice.
    newest = {"SMALTI_MESSAGES_WRITE": "3", "SMALTI_SERVICE_HELLO": "1"}
    with under_load(trial, "row 24", interval=1.0, refine=True) as load:
        load.during = "the database is migrated"
        _migrate(trial)
        for name in system.gateways:
            load.during = f"{name} is updated"
            system.replace(name)
        for name in _ALL_STAGES:
            load.during = f"{name} is updated"
            system.replace(name, **newest)
        for name in system.gateways:
            load.during = f"{name} writes version 3"
            system.replace(name, **newest)
        _note_slowest(trial, load, "the update")
        for name in system.gateways:
            load.during = f"{name} writes version 2"
            system.replace(name, SMALTI_MESSAGES_WRITE="2")
        for name in (*_ALL_STAGES, *system.gateways):
            load.during = f"{name} goes back"
            system.replace(name, LAST)
        _note_slowest(trial, load, "the way back")
        load.during = "all is as before"
    trial.expect_states("succeeded")
    every_kind(trial, "row 24 after it")


def _migrate(trial: Trial) -> None:
    """Runs the command that migrates: killed once in the middle, then two at once."""
    address = trial.system.gateway.environment[_DATABASE]
    if trial.system.postgres:
        address = trial.system.postgres.url
    killed = _start_migration(address, SMALTI_FAILPOINTS=f"gateway.before-migrated=kill?job={MIGRATION}")
    killed.communicate()
    trial.expect(killed.returncode == -signal.SIGKILL, f"the killed migration ended with {killed.returncode}")
    both = [_start_migration(address) for _ in range(2)]
    printed: list[str] = []
    for each in both:
        out, err = each.communicate()
        trial.expect(each.returncode == 0, f"a migration ended with {each.returncode}: {err}")
        printed += [line for line in out.splitlines() if " done in " in line]
    trial.expect(
        printed != [] and min(printed).startswith(MIGRATION) and len(set(printed)) == len(printed),
        f"the steps were {printed}",
    )
    trial.notes += printed


def _start_migration(address: str, **settings: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "smalti.cli", "migrate"],
        env={**os.environ, _DATABASE: address, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _note_slowest(trial: Trial, load: Load, during: str) -> None:
    trial.notes.append(f"the slowest call during {during}: {load.slowest:.1f} s")
    load.slowest = 0.0
