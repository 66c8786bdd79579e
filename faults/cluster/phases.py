"""The phases, in the order in which they are run."""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from faults.cluster import autoscaling, batches, placement
from faults.cluster.kubernetes import COMPONENT, component_of, name_of
from faults.cluster.release import RELEASE
from faults.cluster.trial import ClusterTrial
from faults.deployed.load import Load, under_load
from faults.deployed.models import revision_of
from faults.deployed.programs import ProgramError
from faults.deployed.trial import NEXT, READY_SECONDS, Phase, phase
from smalti.registry.stored import push_model

OURS: Final = ("encoder", "generator", "decoder", "ranker", "refiner", "gateway", "web")
SERVERS: Final = ("broker", "store", "database")
DRAIN_SECONDS: Final = 90
STORED: Final = "models"
"""Where in the store the next revision of the model is put."""


@phase("draw", "`helm test`, and nine pictures through the HTTP API", "a picture and nine pictures come")
def draw(trial: ClusterTrial) -> None:
    """Draws through the front door."""
    said = trial.release.test()
    trial.expect("Succeeded" in said, f"helm test says {said[-200:]!r}")
    trial.draw_and_keep()


@phase("pods", "a pod of each of our kinds is deleted, one after another, under load", "no job fails")
def pods(trial: ClusterTrial) -> None:
    """Deletes pods, and waits after each until its place is filled and jobs end again."""
    with under_load(trial.system, trial.account) as load:
        load.wait_for(2)
        _delete_each(trial, load, OURS)
        trial.system.draw_by_http("a red apple", 1)
    trial.note_load(load)


@phase("kill", "the same for a pod of each stage, without time to finish", "no job fails")
def kill(trial: ClusterTrial) -> None:
    """Deletes pods with force: kubelet kills their containers."""
    with under_load(trial.system, trial.account) as load:
        load.wait_for(1)
        _delete_each(
            trial, load, ("encoder", "generator", "decoder", "ranker"), "--force", "--grace-period=0"
        )
    trial.note_load(load)


@phase("servers", "broker, store and database are deleted, one after another, under load", "no job fails")
def servers(trial: ClusterTrial) -> None:
    """Deletes the pods of the servers, which keep their disks."""
    with under_load(trial.system, trial.account) as load:
        load.wait_for(1)
        _delete_each(trial, load, SERVERS)
    trial.note_load(load)


@phase(
    "code",
    "upgrade of the code (`helm upgrade`, images of another tag) under load",
    "no job fails; the database is migrated by the hook",
)
def code(trial: ClusterTrial) -> None:
    """Upgrades to the images of another tag."""
    with under_load(trial.system, trial.account) as load:
        load.wait_for(1)
        seconds = trial.release.upgrade(*trial.code())
        trial.notes.append(f"`helm upgrade --wait` took {seconds:.0f} s")
        load.wait_for(2)
    images = Counter(
        each["spec"]["containers"][0]["image"] for kind in OURS for each in trial.namespace.pods(kind)
    )
    trial.expect(
        not trial.next_tag or all(image.endswith(f":{trial.next_tag}") for image in images),
        f"pods run {', '.join(images)}",
    )
    migrated = [
        each
        for each in trial.namespace.get("events")
        if each["involvedObject"]["name"].startswith(f"{RELEASE}-migrate")
    ]
    trial.expect(bool(migrated), "no Job migrated the database")
    trial.note_load(load)


@phase(
    "model",
    "upgrade of the model (another revision, from a claim) under load",
    "no job fails; each picture is of the revision that its job names",
)
def model(trial: ClusterTrial) -> None:
    """Upgrades to another revision of the model."""
    with under_load(trial.system, trial.account) as load:
        _upgrade_model(trial, load, trial.next_model())
    _note_revisions(trial)
    trial.note_load(load)


@phase(
    "rollback",
    "`helm rollback` to the first release, under load",
    "no job fails; the old revision draws again",
)
def rollback(trial: ClusterTrial) -> None:
    """Takes both upgrades back."""
    with under_load(trial.system, trial.account) as load:
        _roll_back(trial, load)
    _note_revisions(trial)
    trial.note_load(load)


@phase(
    "stored",
    "upgrade of the model, pulled from the chart's store by its SHA-256, and `helm rollback`, under load",
    "no job fails; each picture is of the revision that its job names",
)
def stored(trial: ClusterTrial) -> None:
    """Puts the other revision into the store, upgrades to it, and takes it back."""
    sha256, sent = push_model(trial.system.models[NEXT], trial.system.store, f"{STORED}/")
    trial.notes.append(f"{sent / 1e6:.1f} MB of the model were put into the store")
    with under_load(trial.system, trial.account) as load:
        _upgrade_model(trial, load, trial.stored_model(f"s3://smalti/{STORED}", sha256))
        _roll_back(trial, load)
    _note_revisions(trial)
    trial.note_load(load)


@phase(
    "drain",
    "the only node is drained under load, and takes pods again",
    "no job fails; the budgets keep a gateway",
)
def drain(trial: ClusterTrial) -> None:
    """Drains the node: what may go goes, and comes back when the node takes pods again."""
    pod = trial.namespace.pods("gateway")[0]
    node = pod["spec"]["nodeName"]
    with under_load(trial.system, trial.account) as load:
        load.wait_for(1)
        with suppress(ProgramError):  # What the budgets keep does not go.
            trial.namespace.kubectl(
                *(
                    "drain",
                    node,
                    "--ignore-daemonsets",
                    "--delete-emptydir-data",
                    f"--pod-selector={COMPONENT}",
                ),
                f"--timeout={DRAIN_SECONDS}s",
                seconds=DRAIN_SECONDS + 60,
            )
        left = [component_of(each) for each in trial.namespace.pods() if each["spec"].get("nodeName") == node]
        trial.namespace.kubectl("uncordon", node)
        trial.notes.append(
            f"after {DRAIN_SECONDS} s of draining there were left: {', '.join(sorted(left)) or 'nothing'}"
        )
        trial.expect("gateway" in left, "no gateway was kept")
        seconds = trial.namespace.wait_until_ready(seconds=READY_SECONDS)
        trial.notes.append(f"everything was ready {seconds:.0f} s after the node took pods again")
        load.wait_for(2)
    trial.note_load(load)


@phase("scale", "encoder and generator are scaled by hand from 1 to 3 to 1 under load", "no job fails")
def scale(trial: ClusterTrial) -> None:
    """Scales two stages by hand."""
    stages = [f"deployment/{RELEASE}-{kind}-{trial.system.model.name}" for kind in ("encoder", "generator")]
    with under_load(trial.system, trial.account) as load:
        load.wait_for(1)
        for replicas in (3, 1):
            trial.namespace.kubectl("scale", f"--replicas={replicas}", *stages)
            seconds = trial.namespace.wait_until_ready(seconds=READY_SECONDS)
            trial.notes.append(f"{replicas} of each were there after {seconds:.0f} s")
            load.wait_for(2)
    trial.note_load(load)


PHASES: Final[dict[str, Phase[ClusterTrial]]] = {
    each.name: each
    for each in (
        draw,
        pods,
        kill,
        servers,
        code,
        model,
        rollback,
        stored,
        drain,
        scale,
        autoscaling.autoscale,
        batches.draw_batch,
        placement.place,
    )
}


def _delete_each(trial: ClusterTrial, load: Load, kinds: tuple[str, ...], *options: str) -> None:
    ready = []
    for kind in kinds:
        pod = name_of(trial.namespace.pods(kind)[0])
        trial.namespace.kubectl("delete", "pod", pod, *options, seconds=300)
        ready.append(f"{kind} {trial.namespace.wait_until_ready(seconds=READY_SECONDS):.0f}")
        load.wait_for(1)
    trial.notes.append(f"seconds until all was ready again: {', '.join(ready)}")


def _upgrade_model(trial: ClusterTrial, load: Load, settings: Sequence[str]) -> None:
    load.wait_for(1)
    seconds = trial.release.upgrade(*trial.code(), *settings)
    trial.notes.append(f"`helm upgrade --wait` took {seconds:.0f} s")
    trial.system.wait_until_drawable(trial.system.models[NEXT].revision, READY_SECONDS)
    load.wait_for(3)


def _roll_back(trial: ClusterTrial, load: Load) -> None:
    load.wait_for(1)
    seconds = trial.release.rollback(1)
    trial.notes.append(f"`helm rollback --wait` took {seconds:.0f} s")
    trial.system.wait_until_drawable(trial.system.model.revision, READY_SECONDS)
    load.wait_for(3)


def _note_revisions(trial: ClusterTrial) -> None:
    trial.account.settle(seconds=READY_SECONDS)
    drawn = Counter(map(revision_of, trial.account.submissions))
    counts = [
        f"{drawn[folder.revision]} with the {name} revision" for name, folder in trial.system.models.items()
    ]
    trial.notes.append(f"jobs drawn: {', '.join(counts)}")
    trial.expect(
        all(drawn[folder.revision] for folder in trial.system.models.values()), "only one revision has drawn"
    )
