"""Drawing what ended the process before: prompt by prompt, so that the one that does it is found."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from smalti.batches import (
    BatchPrompt,
    DrawnPicture,
    PlannedShard,
    PromptResult,
    TarWriter,
    read_tar,
)
from smalti.cli.batches.drawing import DrawnShard
from smalti.cli.batches.places import RunPlace
from smalti.cli.batches.records import Begun, write_begun
from smalti.cli.batches.stages import PipelineStages
from smalti.entrance import signals
from smalti.errors import SmaltiError

MAX_LOST: Final = 2
"""How often in a row a prompt may end the process that draws it alone."""
PROBLEM: Final = "it ended the process twice in a row while it was drawn alone"


def draw_carefully(
    stages: PipelineStages,
    shard: PlannedShard,
    begun: Begun,
    place: RunPlace,
    folder: Path,
    on_wait: Callable[[], None],
) -> DrawnShard:
    """Draws the prompts of a shard one after another, and notes before each that it is drawn alone.

    Args:
        stages: the stages.
        shard: the shard, which was being drawn when a process was lost.
        begun: what was noted of it.
        place: where notes are written.
        folder: where files are made.
        on_wait: called between two prompts.
    """
    failed = set(begun.failed)
    if begun.row is not None and begun.times >= MAX_LOST:
        failed.add(begun.row)
        begun = Begun(failed=tuple(sorted(failed)))
        write_begun(place, shard.number, begun)
    outputs: dict[int, tuple[PromptResult, Path | None]] = {}
    try:
        # First the one that may end the process again.
        for prompt in sorted(shard.prompts, key=lambda prompt: prompt.row != begun.row):
            if prompt.row in failed or prompt.problem is not None:
                outputs[prompt.row] = stages.not_drawn(prompt, prompt.problem or PROBLEM), None
                continue
            times = begun.times + 1 if prompt.row == begun.row else 1
            write_begun(place, shard.number, Begun(failed=begun.failed, row=prompt.row, times=times))
            outputs[prompt.row] = _draw_alone(stages, shard.number, prompt, folder)
            on_wait()
    except BaseException:
        # The process has not been lost: that this prompt was drawn alone says nothing against it.
        with suppress(SmaltiError, OSError):
            write_begun(place, shard.number, begun)
        raise
    return _joined(stages, shard, outputs, folder)


def _draw_alone(
    stages: PipelineStages, number: int, prompt: BatchPrompt, folder: Path
) -> tuple[PromptResult, Path | None]:
    alone = PlannedShard(number=number, prompts=[prompt])
    output = stages.draw_alone(alone, folder, signals.check)
    if output.tar is None:
        return output.results[0], None
    return output.results[0], output.tar.rename(folder / f"{prompt.key}.tar")


def _joined(
    stages: PipelineStages,
    shard: PlannedShard,
    outputs: dict[int, tuple[PromptResult, Path | None]],
    folder: Path,
) -> DrawnShard:
    """Returns a shard of which each prompt was drawn alone, with one tar."""
    path = stages.tar_path(shard.number, folder)
    results = []
    with TarWriter(path, stages.picture_format, model=stages.model, revision=stages.revision) as writer:
        for prompt in shard.prompts:
            result, tar = outputs[prompt.row]
            if tar is not None:
                with tar.open("rb") as file:
                    pictures = [
                        DrawnPicture(
                            content=each.content,
                            candidate=each.record.candidate,
                            score=each.record.score,
                            width=each.record.width,
                            height=each.record.height,
                            wording=each.record.wording,
                        )
                        for each in read_tar(tar.name, file)
                    ]
                writer.add(prompt, pictures, result.effective_prompt)
                tar.unlink()
            results.append(result)
    if not writer.pictures:
        path.unlink()
        return DrawnShard(number=shard.number, results=results, tar=None)
    return DrawnShard(number=shard.number, results=results, tar=path)
