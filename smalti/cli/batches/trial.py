"""`smalti batch run --dry-run`: what a batch would cost, by a short trial with its first prompts."""

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from smalti.batches import BatchPrompt, PictureFormat, PlanCounts, PlannedShard
from smalti.cli.batches.inputs import open_input
from smalti.cli.batches.local import LocalRun, prepare
from smalti.cli.batches.options import RunOptions
from smalti.cli.batches.progress import batch_progress
from smalti.cli.batches.stages import PipelineStages
from smalti.entrance import signals

TRIAL_CANDIDATES: Final = 64
"""Candidates that are drawn to measure, at least."""
BYTES_IN_ROW: Final = 1536
"""What a picture has in a tar beside its own bytes: two headers, its description, and what fills up blocks."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a batch costs."""

    counts: PlanCounts
    seconds: float | None
    """The time on this machine; None if it is not known."""
    bytes: float | None
    """The size of the output; None if it is not known."""

    def fields(self) -> dict[str, Any]:
        """Returns it as JSON."""
        rounded = {"seconds": self.seconds and round(self.seconds), "bytes": self.bytes and round(self.bytes)}
        return {**self.counts.model_dump(), **rounded}


def estimate(options: RunOptions, on_invalid: Callable[[str], None]) -> Estimate:
    """Checks a whole input, and measures its first prompts; writes nothing.

    Args:
        options: the options.
        on_invalid: called with the problem of each row that is left out.

    Raises:
        SmaltiError: something cannot be used.
    """
    with open_input(options.source, options.input_format) as source, batch_progress("Reading") as progress:
        batch = prepare(source, options)
        counts = batch.check(progress, on_invalid)
        prompts = _first_prompts(batch)
        if not prompts:
            return Estimate(counts=counts, seconds=None, bytes=None)
        progress.show(f"Loading {batch.spec.folder.name}")
        per_candidate, per_picture = _measure(batch, prompts, lambda: progress.show("Measuring"))
        return Estimate(
            counts=counts,
            seconds=per_candidate * counts.candidates,
            bytes=(per_picture + BYTES_IN_ROW) * counts.pictures,
        )


def _first_prompts(batch: LocalRun) -> list[BatchPrompt]:
    """Returns the first prompts that can be drawn, as many as are measured."""
    found: list[BatchPrompt] = []
    for shard in batch.plan.shards():
        for prompt in shard.prompts:
            if prompt.problem is None:
                found.append(prompt)
            if sum(each.candidates for each in found) >= TRIAL_CANDIDATES:
                return found
        signals.check()
    return found


def _measure(
    batch: LocalRun, prompts: list[BatchPrompt], on_loaded: Callable[[], None]
) -> tuple[float, float]:
    """Returns the seconds for each candidate, and the bytes of each picture."""
    with batch.load() as pipeline, tempfile.TemporaryDirectory(prefix="smalti-trial-") as folder:
        stages = PipelineStages(
            pipeline, PictureFormat(batch.options.picture_format.value), batch.spec.codebook_size
        )
        on_loaded()
        seconds = math.inf
        # Once to compile what is not compiled yet, and once to measure.
        for number, some in enumerate((prompts[:1], prompts)):
            shard = PlannedShard(number=number, prompts=some)
            before = time.monotonic()
            output = stages.draw_alone(shard, Path(folder), signals.check)
            seconds = time.monotonic() - before
    pictures = [picture for result in output.results for picture in result.pictures]
    size = sum(picture.size for picture in pictures) / max(1, len(pictures))
    return seconds / sum(prompt.candidates for prompt in prompts), size
