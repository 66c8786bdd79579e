"""The phases, in the order in which they are run."""

import time
from dataclasses import dataclass
from typing import Final

from faults.compose.project import Project, restart
from faults.deployed.load import under_load
from faults.deployed.trial import READY_SECONDS, Phase, Trial, phase

SOON_SECONDS: Final = 1.0
"""Time after a kill at which somebody asks for pictures."""


@dataclass(kw_only=True)
class ComposeTrial(Trial):
    """The run of a phase on one host."""

    project: Project
    restart_engine: str
    """Command that restarts the engine."""


@phase("draw", "nine pictures through the HTTP API", "nine pictures come")
def draw(trial: ComposeTrial) -> None:
    """Draws through the front door, and keeps the pictures."""
    trial.draw_and_keep()


@phase(
    "kill",
    "the process of each container killed, one after another, under load; nine pictures asked for a second later",
    "each container starts again, nine pictures come each time, and no job fails",
)
def kill(trial: ComposeTrial) -> None:
    """Kills what runs in each container; the engine's restart policy brings it back."""
    ready = []
    with under_load(trial.system, trial.account) as load:
        load.wait_for(1)
        for service, container in sorted(trial.project.containers().items()):
            began = time.monotonic()
            trial.project.kill(service)
            time.sleep(SOON_SECONDS)
            trial.draw_by_http(seconds=READY_SECONDS)
            drawn = time.monotonic() - began
            trial.project.wait_until_healthy(seconds=READY_SECONDS, but={service: container["State"]["Pid"]})
            ready.append(f"{service} {drawn:.0f} and {time.monotonic() - began:.0f}")
            load.wait_for(1)
    trial.notes.append(f"seconds until nine pictures came, and until all was healthy: {', '.join(ready)}")
    trial.note_load(load)


@phase(
    "engine",
    "the engine restarted under load",
    "all containers start again, nine pictures come, and no job fails",
)
def engine(trial: ComposeTrial) -> None:
    """Restarts the engine, which stops all containers and starts them again in no order."""
    with under_load(trial.system, trial.account) as load:
        load.wait_for(1)
        began = time.monotonic()
        away = restart(trial.restart_engine)
        trial.draw_by_http(seconds=READY_SECONDS)
        drawn = time.monotonic() - began
        trial.project.wait_until_healthy(seconds=READY_SECONDS)
        healthy = time.monotonic() - began
        load.wait_for(2)
    trial.notes.append(
        f"the engine answered after {away:.0f} s, nine pictures came after {drawn:.0f} s, "
        f"all was healthy after {healthy:.0f} s"
    )
    trial.note_load(load)


@phase(
    "code",
    "upgrade of the code (`docker compose up --wait`, images of another tag) under load",
    "every container of ours is replaced, and no job fails",
)
def code(trial: ComposeTrial) -> None:
    """Upgrades to the images of another tag; without one, containers stay."""
    with under_load(trial.system, trial.account) as load:
        load.wait_for(1)
        settings = {"TAG": trial.next_tag} if trial.next_tag else {}
        trial.notes.append(f"`docker compose up --wait` took {trial.project.up(**settings):.0f} s")
        load.wait_for(2)
        trial.draw_by_http(seconds=READY_SECONDS)
    images = [each["Config"]["Image"] for each in trial.project.containers().values()]
    replaced = [image for image in images if trial.next_tag and image.endswith(f":{trial.next_tag}")]
    trial.notes.append(f"{len(replaced)} containers run images of the next tag")
    trial.expect(bool(replaced) or not trial.next_tag, f"containers run {', '.join(sorted(images))}")
    trial.note_load(load)


PHASES: Final[dict[str, Phase[ComposeTrial]]] = {each.name: each for each in (draw, kill, engine, code)}
