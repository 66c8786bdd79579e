"""Looks whether the output of a batch is what it must be."""

import io
from collections import Counter
from collections.abc import Iterator, Mapping

from faults.batches.submissions import CANDIDATES, BatchSubmission
from faults.reference import Reference
from smalti.batches import (
    BatchKeys,
    BatchLayout,
    BatchSummary,
    PromptResult,
    TarPicture,
    read_manifest,
    read_tar,
)
from smalti.errors import DamagedObjectError
from smalti.storage import ObjectStore, digest


def read_output(store: ObjectStore, batch: str) -> dict[str, bytes]:
    """Returns the files of a batch's output by their names."""
    prefix = BatchKeys(batch).prefix
    return {info.key.removeprefix(prefix): store.get(info.key) for info in store.objects(prefix)}


def problems_of(
    submission: BatchSubmission, files: Mapping[str, bytes], references: Mapping[str, Reference]
) -> Iterator[str]:
    """Yields what is wrong with the output of a batch that has ended.

    Args:
        submission: the batch.
        files: its output.
        references: generate the expected pictures, by the revision of the model.
    """
    layout = BatchLayout()
    is_complete = submission.state == "succeeded"
    if (layout.success in files) != is_complete:
        yield f"{layout.success} is {'missing' if is_complete else 'there'}"
    try:
        summary = BatchSummary.parse(layout.summary, files[layout.summary])
        rows = [row for name in sorted(files) if name.endswith(".parquet") for row in _rows(name, files)]
    except KeyError:
        yield f"{layout.summary} is missing"
        return
    except DamagedObjectError as error:
        yield str(error)
        return
    yield from _problems_of_summary(submission, summary, rows)
    yield from _problems_of_rows(submission, rows)
    tars = {row.tar for row in rows if row.tar is not None}
    expected = {*tars, layout.summary, *((layout.success,) if is_complete else ())}
    for name in sorted(name for name in {*files} ^ expected if not name.endswith(".parquet")):
        yield f"{name} is {'not named by the manifest' if name in files else 'missing'}"
    for tar in sorted(tars & {*files}):
        named = [row for row in rows if row.tar == tar]
        yield from _problems_of_tar(tar, files[tar], named, references)


def _rows(name: str, files: Mapping[str, bytes]) -> Iterator[PromptResult]:
    return read_manifest(name, io.BytesIO(files[name]))


def _problems_of_summary(
    submission: BatchSubmission, summary: BatchSummary, rows: list[PromptResult]
) -> Iterator[str]:
    states = Counter(row.state for row in rows)
    counts = summary.counts
    told = (counts.prompts, counts.drawn, counts.failed, counts.invalid, counts.pictures)
    found = (
        *(len(rows), states["drawn"], states["failed"], states["invalid"]),
        sum(len(row.pictures) for row in rows),
    )
    if told != found:
        yield f"the summary counts {told}, the manifest {found}"
    state = {"succeeded": "complete"}.get(submission.state, submission.state)
    if summary.state != state:
        yield f"the summary says that the batch is {summary.state}"
    tars = tuple(dict.fromkeys(row.tar for row in rows if row.tar is not None))
    if summary.shards != tars:
        yield f"the summary names {summary.shards}, the manifest {tars}"
    end = submission.end
    if end is not None and submission.state == "succeeded":
        progress = end.progress
        shown = (progress.prompts, progress.prompts_drawn, progress.prompts_failed, progress.pictures)
        if shown != (counts.prompts, counts.drawn, counts.failed, counts.pictures):
            yield f"the batch says {shown}, the summary {counts}"


def _problems_of_rows(submission: BatchSubmission, rows: list[PromptResult]) -> Iterator[str]:
    numbers = [row.row for row in rows]
    if numbers != sorted({*numbers}) or not {*numbers} <= {*range(len(submission.prompts))}:
        yield f"the manifest has the rows {numbers}"
        return
    if submission.state == "succeeded" and len(numbers) != len(submission.prompts):
        yield f"the manifest has {len(numbers)} of {len(submission.prompts)} rows"
    for row in rows:
        state = submission.state_of(row.row)
        given = row.id, row.prompt, row.seed
        expected = str(row.row), submission.prompts[row.row], submission.seed(row.row)
        if given != expected and state != "invalid":
            yield f"row {row.row} is {given}"
        if row.state != state:
            yield f"row {row.row} is {row.state}, not {state}: {row.problem}"
        drawn = sorted(picture.candidate for picture in row.pictures)
        if drawn != list(range(CANDIDATES)) * (row.state == "drawn"):
            yield f"row {row.row} has the pictures {drawn}"


def _problems_of_tar(
    tar: str, content: bytes, rows: list[PromptResult], references: Mapping[str, Reference]
) -> Iterator[str]:
    """Compares the pictures of a tar with the manifest, and with those of the engines alone."""
    try:
        pictures = list(read_tar(tar, io.BytesIO(content)))
    except DamagedObjectError as error:
        yield str(error)
        return
    named = [(row, picture) for row in rows for picture in row.pictures]
    if [picture.key for picture in pictures] != [record.key for _, record in named]:
        yield f"{tar} has other pictures than the manifest"
        return
    for picture, (row, record) in zip(pictures, named, strict=True):
        described = picture.record.picture(picture.key, len(picture.content))
        if described != record or picture.record.row != row.row:
            yield f"{tar}: {picture.key} is described differently by the manifest"
        if not _is_right(picture, row, references[row.revision]):
            yield f"{tar}: {picture.key} is not the picture of the engines alone"


def _is_right(picture: TarPicture, row: PromptResult, reference: Reference) -> bool:
    expected = reference.sha256(row.prompt, row.seed, picture.record.candidate, CANDIDATES)
    return picture.record.sha256 == expected == digest(picture.content)
