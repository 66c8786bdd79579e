"""Batches as they are when every shard is drawn, with small pictures that no engine made."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from harness.captioned_pictures import picture
from smalti.batches import (
    BatchDescription,
    BatchPlan,
    BatchPrompt,
    DrawnPicture,
    InputFormat,
    InputRecord,
    OutputPlace,
    PictureFormat,
    PlannedShard,
    PromptResult,
    ResultPart,
    ShardRange,
    TarWriter,
    webp_bytes,
)
from smalti.pictures import Drawing, png_bytes
from smalti.storage import digest
from tests.batches.conftest import plan_of

MODEL, REVISION = "tiny", "0123456789ab"
SIDE = 16


def draw(prompt: BatchPrompt, picture_format: PictureFormat = PictureFormat.PNG) -> list[DrawnPicture]:
    """Returns pictures that follow from the seed alone."""
    pictures = []
    for rank in range(prompt.n):
        image = picture(prompt.seed + rank, (SIDE, SIDE))
        drawing = Drawing(
            prompt=prompt.prompt,
            seed=prompt.seed,
            model=MODEL,
            revision=REVISION,
            sampling=prompt.sampling,
            candidates=prompt.candidates,
            candidate=rank,
            score=1 - rank / 10,
        )
        is_png = picture_format is PictureFormat.PNG
        content = png_bytes(image, drawing) if is_png else webp_bytes(image)
        pictures.append(
            DrawnPicture(content=content, candidate=rank, score=1 - rank / 10, width=SIDE, height=SIDE)
        )
    return pictures


def draw_part(
    place: OutputPlace,
    folder: Path,
    shard: PlannedShard,
    part: ShardRange,
    picture_format: PictureFormat = PictureFormat.PNG,
) -> bytes:
    """Writes the tar of a part of a shard, and returns its results; prompts with "bad" in them fail."""
    path = folder / "part.tar"
    name = f"{part.name}.tar"
    results = []
    with TarWriter(path, picture_format, model=MODEL, revision=REVISION) as tar:
        for prompt in part.of(shard.prompts):
            problem = prompt.problem or ("cannot be drawn" if "bad" in prompt.prompt else None)
            if problem is not None:
                results.append(PromptResult.not_drawn(prompt, problem, model=MODEL, revision=REVISION))
                continue
            records = tar.add(prompt, draw(prompt, picture_format))
            results.append(
                PromptResult.of_pictures(prompt, records, tar=name, model=MODEL, revision=REVISION)
            )
    if tar.pictures:
        place.put_file(name, path)
    path.unlink()
    return PromptResult.to_bytes(results)


def describe(plan: BatchPlan, picture_format: PictureFormat = PictureFormat.PNG) -> BatchDescription:
    counts = plan.check()
    with plan.open() as file:
        sha256 = digest(file.read())
    return BatchDescription(
        input=InputRecord(name="prompts.txt", sha256=sha256, format=InputFormat.TEXT),
        model=MODEL,
        parameters=plan.defaults,
        picture_format=picture_format,
        shard_prompts=plan.shard_prompts,
        prompts=counts.prompts,
        blank=counts.blank,
    )


def draw_all(
    plan: BatchPlan,
    place: OutputPlace,
    folder: Path,
    halve: Callable[[ShardRange], bool] = lambda _: False,
    picture_format: PictureFormat = PictureFormat.PNG,
) -> list[ResultPart]:
    """Draws all shards, and returns their results."""
    parts = []
    for shard in plan.shards():
        for part in shard.range.halves() if halve(shard.range) else (shard.range,):
            content = draw_part(place, folder, shard, part, picture_format)
            parts.append(ResultPart(range=part, load=partial(bytes, content)))
    return parts


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def text_plan(lines: int, shard_prompts: int = 4, bad: int | None = None) -> BatchPlan:
    content = "".join(f"{'a bad' if line == bad else 'a'} fox {line}\n" for line in range(lines)).encode()
    return plan_of(content, InputFormat.TEXT, shard_prompts=shard_prompts)
