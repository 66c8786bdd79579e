"""Import of a user's own pictures: cleaned, split, and written as Parquet shards.

Near copies are known only after all pictures have been read. So rows are first written without a split, then assigned
to splits in a second pass. Memory holds a fingerprint of each picture, never the pictures.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from smalti.errors import InvalidInputError
from smalti.outputs import whole_folder
from smalti.training.data.cleaning import clean, size_problem, watermark_host
from smalti.training.data.configuration import ImportSettings
from smalti.training.data.near_duplicates import Fingerprints
from smalti.training.data.pictures import UnreadablePictureError, decode, pixels_of, png_bytes, square
from smalti.training.data.report import SHEET_PICTURES, Report
from smalti.training.data.shards import Row, ShardWriter, read_rows, shard_paths
from smalti.training.data.sources import UNREADABLE, Entry, Problem, read_source
from smalti.training.data.splits import refuse_empty, split_clusters

SCHEMA = pa.schema(
    [
        ("image", pa.binary()),
        ("caption", pa.string()),
        ("name", pa.string()),
        ("url", pa.string()),
        ("picture", pa.string()),
    ]
)
_UNSPLIT = "unsplit"

Advance = Callable[[int], None]


@dataclass
class _Seen:
    """The data for comparing new pictures with the kept ones."""

    fingerprints: Fingerprints = field(default_factory=Fingerprints)
    digests: dict[str, int] = field(default_factory=dict)
    """Index of each picture by the digest of its pixels; equal pictures count once."""
    said: set[tuple[str, str]] = field(default_factory=set)
    """Pairs of digest and caption seen so far."""


def import_pictures(
    source: Path,
    out: Path,
    settings: ImportSettings | None = None,
    overwrite: bool = False,
    advance: Advance = lambda count: None,
) -> Report:
    """Makes a data set from a folder, a CSV, TSV or JSONL file, or webdataset tar files.

    `out` receives shards with the columns `image` (PNG), `caption`, `name`, `url` and `picture` (a digest of the
    pixels), one row for each picture and caption, and a report with contact sheets.

    Args:
        source: a file or folder of one of the kinds in `smalti.training.data.sources`.
        out: folder of the data set.
        settings: how pictures are cleaned, compared and split.
        overwrite: whether the content of `out` may be replaced.
        advance: called with the number of entries read so far.

    Raises:
        InvalidInputError: the source is missing or unknown, none of its pictures is usable, or a split is empty.
        SmaltiError: the disk is full or cannot be written.
    """
    settings = settings or ImportSettings()
    report = Report(f"Import of {source.name}")
    with whole_folder(out, inputs={"source": source}, overwrite=overwrite) as folder:
        records = read_source(source)
        seen = _Seen()
        with ShardWriter(folder, _UNSPLIT, SCHEMA) as writer:
            for number, record in enumerate(records, start=1):
                advance(number)
                report.step("read")["entries"] += 1
                if isinstance(record, Problem):
                    report.drop("read", record.name, record.reason, record.detail)
                else:
                    for row in _clean(record, settings, seen, report):
                        writer.write(row)
        if not writer.rows:
            raise InvalidInputError(
                "source", f"{source} must have a usable picture with a caption{_most_common_reason(report)}"
            )
        _assign_splits(folder, settings, seen, report)
        for path in shard_paths(folder, _UNSPLIT):
            path.unlink()
        report.write(folder)
    return report


def _clean(entry: Entry, settings: ImportSettings, seen: _Seen, report: Report) -> list[Row]:
    """Returns the rows of an entry: one for each caption that is new for its picture."""
    host = watermark_host(entry.address) if entry.address else None
    if host:
        report.drop("clean", entry.name, "host of watermarked pictures", host)
        return []
    try:
        picture = decode(entry.content)
    except UnreadablePictureError as error:
        report.drop("read", entry.name, UNREADABLE, str(error))
        return []
    problem = size_problem(picture, settings.smallest_side, settings.longest_shape)
    if problem:
        report.drop("clean", entry.name, problem, f"{picture.width} x {picture.height}")
        return []
    cleaned = [clean(text, settings.longest_caption) for text in entry.captions]
    for caption in cleaned:
        for kind, example in caption.left_out.items():
            report.leave_out(f"{kind}s in captions", example)
    captions = list(dict.fromkeys(caption.text for caption in cleaned if caption.text))
    silent = [text for text, caption in zip(entry.captions, cleaned, strict=True) if not caption.text]
    if captions and silent:
        report.drop("clean", entry.name, "one of its captions says nothing", silent[0][:60])
    if not captions:
        report.drop("clean", entry.name, "caption that says nothing", entry.captions[0][:60])
        return []
    stored = square(picture, settings.resolution)
    digest = hashlib.sha256(stored.tobytes()).hexdigest()[:32]
    fresh = [caption for caption in captions if (digest, caption) not in seen.said]
    if not fresh:
        report.drop("clean", entry.name, "same picture and caption again")
        return []
    if digest not in seen.digests:
        seen.digests[digest] = len(seen.digests)
        seen.fingerprints.add(stored)
    seen.said.update((digest, caption) for caption in fresh)
    report.step("clean")["kept pictures with captions"] += len(fresh)
    image = png_bytes(stored)
    return [
        {"image": image, "caption": caption, "name": entry.name, "url": entry.address, "picture": digest}
        for caption in fresh
    ]


def _assign_splits(folder: Path, settings: ImportSettings, seen: _Seen, report: Report) -> None:
    """Writes the shards of all splits from the rows without a split."""
    clusters = seen.fingerprints.clusters(settings.farthest_hash, settings.farthest_colour)
    splits = split_clusters(clusters, list(seen.digests), settings.shares, settings.seed)
    counts = report.step("compare")
    counts["different pictures"] = len(clusters)
    counts["groups of near copies, or single pictures"] = len(set(clusters.tolist()))
    expected = ["train", *settings.shares]
    refuse_empty(splits, expected)
    first_of = {cluster: index for index, cluster in reversed(list(enumerate(clusters.tolist())))}
    for split in expected:
        shown: list[Row] = []
        with ShardWriter(folder, split, SCHEMA) as writer:
            for row in read_rows(folder, _UNSPLIT):
                index = seen.digests[row["picture"]]
                if splits[index] != split:
                    continue
                if not settings.keep_near_duplicates and first_of[int(clusters[index])] != index:
                    counts["dropped: near copy"] += 1
                    continue
                writer.write(row)
                if len(shown) < SHEET_PICTURES:
                    shown.append(row)
        report.step("split")[split] = writer.rows
        pictures = [pixels_of(row["image"]) for row in shown]
        report.add_sheet(folder, split, pictures, [row["caption"] for row in shown])


def _most_common_reason(report: Report) -> str:
    """Returns the most common reason for dropping pictures, in brackets."""
    reasons = [item for counts in report.counts.values() for item in counts.items() if "dropped" in item[0]]
    if not reasons:
        return ""
    reason, count = max(reasons, key=lambda item: item[1])
    return f" ({count} x {reason.removeprefix('dropped: ')})"
