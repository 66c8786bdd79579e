"""Store and broker in trouble while batches are drawn, and objects that are lost or damaged."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from faults.batches import SHARD_PROMPTS
from faults.layout import STAGE_NAMES
from faults.matrix import Trial, row
from faults.rows.batches.settings import SETTINGS, prompts_of
from faults.rows.store import TROUBLES, harm_object
from faults.system import System
from harness.objects import keys_of
from smalti.batches import BatchKeys, ShardRange
from smalti.storage import JobKeys

SECONDS, SHORT_SECONDS = 5.0, 2.0
_NAMES: Final = (*TROUBLES, "killed", "full")
_SLOW: Final = "row 30 is ranked slowly"
_RANKING: Final = f"rank.shard-engine-step=sleep:2@{len(_NAMES)}?prompt={_SLOW}"
_FINISHING: Final = "gateway.before-manifest=sleep:2@1?batch=row 30 {}"


@row(
    "30",
    "store full, killed, down, slow, or answering wrongly, while shards are ranked and batches finished",
    "the work is done when the store is back; the same files",
    failpoints=(_RANKING, *(_FINISHING.format(name) for name in _NAMES)),
    settings=SETTINGS,
)
def store_in_trouble(trial: Trial) -> None:
    """Harms the store twice for each batch: while the ranker works, and before the gateway writes the manifest."""
    system, batches = trial.system, trial.batches
    prompts = [*prompts_of("row 30", 3 * SHARD_PROMPTS), _SLOW]
    for number, name in enumerate(_NAMES):
        batch = batches.submit(f"row 30 {name}", prompts)
        system.wait_until_reached(_RANKING, number)
        with _trouble(system, name):
            time.sleep(SECONDS if trial.long else SHORT_SECONDS)
        system.wait_until_reached(_FINISHING.format(name))
        with _trouble(system, name):
            time.sleep(SECONDS if trial.long else SHORT_SECONDS)
        trial.expect_batches("succeeded", batch)
    trial.expect_same_files(*batches.submissions)


@contextmanager
def _trouble(system: System, name: str) -> Iterator[None]:
    """Harms the store while the block runs."""
    if name in TROUBLES:
        with (
            system.faulty("gateways", "store", TROUBLES[name]),
            system.faulty("stages", "store", TROUBLES[name]),
        ):
            yield
        return
    if name == "full":
        with system.disk_full(system.s3.pids[-1]):
            yield
        system.s3.kill()  # It stays read-only until it is restarted.
    else:
        system.s3.kill()
        yield
    system.s3.start()


@row(
    "31",
    "broker killed and started again, and stopped, while shards are in its queues",
    "no shard is lost; batches are accepted meanwhile",
    settings=SETTINGS,
)
def broker_away(trial: Trial) -> None:
    """Submits batches before, while and after the broker is away."""
    system, batches = trial.system, trial.batches
    prompts = prompts_of("row 31", 8 * SHARD_PROMPTS)
    before = batches.submit("row 31 before", prompts)
    batches.wait_until(before, lambda now: now.progress.shards_in_flight > 0)
    system.broker.kill()
    batches.submit("row 31 killed", prompts)
    time.sleep(1.0)  # The duration of the fault.
    system.broker.start()
    back = batches.submit("row 31 back", prompts)
    batches.wait_until(back, lambda now: now.progress.shards > 0)
    system.broker.pause()
    batches.submit("row 31 paused", prompts)
    time.sleep(SECONDS if trial.long else SHORT_SECONDS)
    system.broker.resume()
    trial.expect_batches("succeeded")
    trial.expect_same_files(*batches.submissions)


# What each stage has written, but not reported, when it is harmed; and the place of the shard that it is harmed for.
_WRITTEN: Final = {
    "encode": lambda keys: keys.shard_encodings,
    "generate": lambda keys: keys.shard_tokens,
    "decode": lambda keys: keys.shard_candidates,
}
_FIRST: Final = 40
"""The first shard that is harmed; no other row has a shard with this number."""
_HARMS: Final = ("missing", "damaged", "other")
_SLEEPING: Final = {
    (stage, harm): f"{stage}.shard-after-write=sleep:3@1?shard={_FIRST + 3 * place + number:05d}"
    for place, stage in enumerate(_WRITTEN)
    for number, harm in enumerate(_HARMS)
}


@row(
    "32",
    "what a stage has written for a shard is missing, damaged or replaced before the next one reads it",
    "the shard is made again, with the same files",
    failpoints=tuple(_SLEEPING.values()),
    settings=SETTINGS,
)
def objects_harmed(trial: Trial) -> None:
    """Damages the outputs of the stages for nine shards of a batch."""
    system, batches = trial.system, trial.batches
    prompts = prompts_of("row 32", _FIRST + len(_SLEEPING))
    harmed = batches.submit("row 32 harmed", prompts, shard_prompts=1)
    for number, ((stage, harm), failpoint) in enumerate(_SLEEPING.items(), _FIRST):
        system.wait_until_reached(failpoint)
        job = BatchKeys(harmed.batch).job(ShardRange(number=number, count=1))
        for key in keys_of(system.store, _WRITTEN[stage](JobKeys(job))):
            harm_object(system, key, harm)
    trial.expect_batches("succeeded", harmed)
    calm = batches.submit("row 32 calm", prompts, shard_prompts=1)
    trial.expect_batches("succeeded", calm)
    trial.expect_same_files(harmed, calm)
    again = sum(
        "starts again from the prompt" in str(line.get("event", "")) for line in system.lines(*STAGE_NAMES)
    )
    trial.notes.append(f"shards were made again {again} times")
