"""The most revealing faults of batches, for the slow tests: two minutes in one system."""

from typing import Final

from faults.batches import SHARD_PROMPTS
from faults.matrix import Row, Trial, row
from faults.rows.batches.settings import SETTINGS, prompts_of

_WORKERS: Final = tuple(
    f"{stage}.shard-{point}=kill@1?shard={number:05d}"
    for number, (stage, point) in enumerate(
        (
            ("encode", "after-publish"),
            ("generate", "before-write"),
            ("decode", "after-write"),
            ("rank", "engine-step"),
            ("rank", "after-write"),
        )
    )
)
_GATEWAY: Final = tuple(
    f"gateway.{point}=kill@1?batch=short killed"
    for point in ("before-shards", "after-shard-done", "after-manifest")
)


@row(
    "batches",
    "workers killed while they work on shards, and the gateway while it cuts, counts and finishes",
    "every prompt is drawn once; the files are those of a run without faults",
    failpoints=(*_WORKERS, *_GATEWAY),
    settings=SETTINGS,
)
def killed(trial: Trial) -> None:
    """Draws a batch over which five workers and three gateways die, and the same batch undisturbed."""
    prompts = prompts_of("short", SHARD_PROMPTS * len(_WORKERS))
    disturbed = trial.batches.submit("short killed", prompts)
    trial.expect_batches("succeeded", disturbed)
    for failpoint in (*_WORKERS, *_GATEWAY):
        trial.expect(trial.system.reached(failpoint), f"{failpoint} was not reached")
    calm = trial.batches.submit("short calm", prompts)
    trial.expect_batches("succeeded", calm)
    trial.expect_same_files(disturbed, calm)


_CANCELLED: Final = "gateway.after-manifest=sleep:3@1?batch=short cancelled"


@row(
    "batches cancelled",
    "a batch cancelled when everything is written, but is not known to be",
    "it is either complete or cancelled, in its state and in its files",
    failpoints=(_CANCELLED,),
    settings=SETTINGS,
)
def cancelled(trial: Trial) -> None:
    """Cancels a batch after its `_SUCCESS` was written."""
    batch = trial.batches.submit("short cancelled", prompts_of("short", SHARD_PROMPTS))
    trial.system.wait_until_reached(_CANCELLED)
    with trial.system.client(attempts=4, retry_seconds=60) as client:
        client.batches.cancel(batch.batch)
    trial.batches.settle(batch)
    trial.expect(batch.state in ("cancelled", "succeeded"), f"it is {batch.state}")


_DEADLY: Final = "short kills its decoder"


@row(
    "batches poison",
    "a prompt in a shard that kills its worker each time",
    "it alone is a failed row of the manifest",
    failpoints=(f"decode.shard-engine-step=kill?prompt={_DEADLY}",),
    settings=SETTINGS,
)
def poison(trial: Trial) -> None:
    """Draws a batch of one shard with such a prompt."""
    batch = trial.batches.submit("short poison", [*prompts_of("short", 1), _DEADLY], failing=[1])
    trial.expect_batches("succeeded", batch)


SHORT: Final[tuple[Row, ...]] = (killed, cancelled, poison)
