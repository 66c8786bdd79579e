"""Workers for batches alone: none at rest, started and ended by the triggers that the chart renders."""

import time
import uuid
from typing import Final

from faults.batches.submissions import BatchSubmission
from faults.cluster.autoscaling import SETTINGS, Prometheus, Queues, wanted_by
from faults.cluster.kubernetes import name_of
from faults.cluster.release import RELEASE
from faults.cluster.trial import ClusterTrial
from faults.deployed.load import PROMPTS, under_load
from faults.deployed.trial import READY_SECONDS, phase
from smalti.client import has_ended

OWN: Final = ("services.generator.batch.shared=false", "services.generator.batch.replicas=1")
"""A generator of batches' own; the others take no shards."""
MOST: Final = ("services.generator.batch.maxReplicas=2",)
PROMPTS_OF_BATCH: Final = 24
CANDIDATES: Final = 2
LOOK_SECONDS: Final = 3.0


@phase(
    "batches",
    "a batch under load; its own generators scaled by the triggers, as rendered, from none and back",
    "generators of the batch come and go, every prompt of it is drawn, and no job fails",
)
def draw_batch(trial: ClusterTrial) -> None:
    """Follows what the trigger of the batch's generators asks for, until nothing of the batch waits."""
    full = f"{RELEASE}-generator-{trial.system.model.name}-batch"
    rendered = trial.release.rendered(*trial.code(), *SETTINGS, *OWN, *MOST)
    (scaled,) = [each for each in rendered if each["kind"] == "ScaledObject" and name_of(each) == full]
    queues, nobody = Queues(trial.namespace), Prometheus("")
    asked_for: list[int] = []
    with under_load(trial.system, trial.account, limit=2) as load:
        trial.release.upgrade(*trial.code(), *OWN)
        trial.namespace.kubectl(
            "scale", f"--replicas={wanted_by(scaled, queues, nobody)}", f"deployment/{full}"
        )
        trial.namespace.wait_until_ready(seconds=READY_SECONDS)
        trial.expect(not trial.namespace.pods("generator-batch"), "a generator of batches runs at rest")
        batch = BatchSubmission(
            "cluster", tuple(PROMPTS * (PROMPTS_OF_BATCH // len(PROMPTS))), str(uuid.uuid4())
        )
        trial.system.store.put(batch.input_key, "".join(f"{each}\n" for each in batch.prompts).encode())
        began = time.monotonic()
        with trial.system.client(attempts=4, retry_seconds=60) as client:
            made = client.batches.create(
                object_key=batch.input_key,
                name=batch.name,
                n=CANDIDATES,
                candidates=CANDIDATES,
                shard_prompts=4,
                request_id=batch.request_id,
            )
            batch.batch = made.id
            trial.batches.append(made.id)
            while time.monotonic() < began + READY_SECONDS:
                wanted = wanted_by(scaled, queues, nobody)
                if not asked_for or wanted != asked_for[-1]:
                    asked_for.append(wanted)
                    trial.namespace.kubectl("scale", f"--replicas={wanted}", f"deployment/{full}")
                if batch.end is None and has_ended(found := client.batches.get(batch.batch)):
                    batch.end = found
                    trial.notes.append(f"the batch was drawn after {time.monotonic() - began:.0f} s")
                if batch.end is not None and not wanted:
                    break
                time.sleep(LOOK_SECONDS)
        trial.namespace.wait_until_ready(seconds=READY_SECONDS)
        trial.expect(not trial.namespace.pods("generator-batch"), "a generator of batches runs in the end")
        load.wait_for(1)
        trial.release.rollback(1)
        load.wait_for(1)
    trial.notes.append(f"generators of the batch that were asked for: {', '.join(map(str, asked_for))}")
    drawn = batch.end.progress.prompts_drawn if batch.end else 0
    trial.notes.append(f"{drawn} of {len(batch.prompts)} prompts were drawn")
    trial.expect(batch.state == "succeeded", f"the batch is {batch.state}")
    trial.expect(drawn == len(batch.prompts), "not every prompt was drawn")
    trial.expect(max(asked_for) > 0 == asked_for[-1], "the triggers did not start and end generators")
