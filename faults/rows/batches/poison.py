"""Prompts in a shard that kill their workers, or over which an engine raises."""

import time
from typing import Final

from faults.batches import SHARD_PROMPTS
from faults.matrix import Trial, row
from faults.rows.batches.settings import SETTINGS, prompts_of
from smalti.batches import seed_of_row

_ROWS: Final = 3 * SHARD_PROMPTS
_DEADLY: Final = {
    "encode": ("encoder", 1),
    "decode": ("decoder", SHARD_PROMPTS + 2),
    "rank": ("ranker", 2 * SHARD_PROMPTS + 3),
}
"""The service that a prompt kills, and the row of the prompt, by stage."""
_SEED: Final = 33
"""The seed of a batch whose sixth row no other batch has."""


@row(
    "33",
    "prompts in a shard that kill their worker each time",
    "each of them alone is a failed row of the manifest; all others are drawn",
    failpoints=tuple(
        f"{stage}.shard-engine-step=kill?prompt=row 33 kills its {stage} worker" for stage in _DEADLY
    ),
    settings=SETTINGS,
)
def deadly(trial: Trial) -> None:
    """Draws a batch in which three shards have a prompt that kills the worker of a stage."""
    system, batches, began = trial.system, trial.batches, time.time()
    prompts = list(prompts_of("row 33", _ROWS))
    for stage, (_, number) in _DEADLY.items():
        prompts[number] = f"row 33 kills its {stage} worker"
    failing = [number for _, number in _DEADLY.values()]
    batch = batches.submit("row 33", prompts, failing=failing)
    neighbour = batches.submit("row 33 neighbour", prompts_of("row 33", SHARD_PROMPTS))
    trial.expect_batches("succeeded", batch, neighbour)
    for name, _ in _DEADLY.values():
        kills = sum(end.name == name and end.code == -9 and end.when >= began for end in system.ends)
        trial.notes.append(f"the {name} died {kills} times until the prompt was found among {SHARD_PROMPTS}")


@row(
    "33 raises",
    "prompts in a shard over which the generator and the decoder raise each time",
    "each of them alone is a failed row of the manifest; no process ends",
    failpoints=(
        f"generate.engine-request=raise?seed={seed_of_row(_SEED, 5)}",
        "decode.shard-engine-step=raise?prompt=row 33 the decoder raises",
    ),
    settings=SETTINGS,
)
def raising(trial: Trial) -> None:
    """Draws a batch with two such prompts, and one with neither."""
    system, batches, began = trial.system, trial.batches, time.time()
    prompts = list(prompts_of("row 33 raises", 2 * SHARD_PROMPTS))
    prompts[1] = "row 33 the decoder raises"
    batch = batches.submit("row 33 raises", prompts, failing=[1, 5], seed=_SEED)
    trial.expect_batches("succeeded", batch)
    ended = [end.name for end in system.ends if end.when >= began]
    trial.expect(not ended, f"processes ended: {', '.join(ended)}")
