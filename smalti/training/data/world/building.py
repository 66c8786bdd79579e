"""Building the shipped data set: pinned packages in, a world and a set of named pictograms out."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Int
from PIL import Image

from smalti.outputs import whole_folder
from smalti.training.data.near_duplicates import Fingerprints
from smalti.training.data.pictures import flatten, pixels_of, png_bytes
from smalti.training.data.report import SHEET_PICTURES, Report
from smalti.training.data.shards import ShardWriter
from smalti.training.data.splits import choose, refuse_empty, share_of, split_clusters
from smalti.training.data.world.attributes import SPLITS, Attributes
from smalti.training.data.world.composition import Accept, CompositionDataset, World, draw_attributes
from smalti.training.data.world.description import (
    HELD_OUT_ASPECTS,
    PATTERNS,
    PLAIN,
    SCENES,
    Pictograms,
    WorldDescription,
)
from smalti.training.data.world.packages.licences import credits_markdown, load_credits
from smalti.training.data.world.packages.pictograms import Names, Pictogram, read_pictograms
from smalti.training.data.world.packages.words import make_words
from smalti.training.data.world.sprites import make_sprites

PICTOGRAM_SCHEMA = pa.schema(
    [
        ("image", pa.binary()),
        ("caption", pa.string()),
        ("label", pa.string()),
        ("keywords", pa.list_(pa.string())),
        ("code", pa.string()),
        ("style", pa.string()),
    ]
)
_OVERSAMPLING = 2
_SHEET_RESOLUTION = 96
_PICTOGRAM_RESOLUTION = 128
"""Largest side of the stored pictograms."""
_KIND_PICTURES = 64
_COUNTED = 2000
_MIN_VISIBLE = 0.01

Advance = Callable[[int, int], None]
"""Called with the number of pictograms drawn so far, and the total number."""


@dataclass(frozen=True)
class _Picture:
    pictogram: Pictogram
    png: bytes
    digest: str


def build(
    out: Path,
    packages: Path,
    description: WorldDescription,
    resolution: int = 64,
    with_pictograms: bool = True,
    overwrite: bool = False,
    advance: Advance = lambda done, total: None,
) -> Report:
    """Builds the data set from installed packages; the same packages and arguments give the same bytes.

    `out` receives `world/` (sprites, description, words, credits), `pictograms/` (every named picture of the packages,
    as Parquet shards), a report and its contact sheets.

    Args:
        out: folder of the data set.
        packages: folder that `install_packages` returned.
        description: the world.
        resolution: largest side of the pictures that will be composed from it.
        with_pictograms: whether to make `pictograms/` too, which takes most of the time.
        overwrite: whether the content of `out` may be replaced.
        advance: called with the progress.

    Raises:
        InvalidInputError: a package is missing, or has no picture of a thing.
        SmaltiError: the disk is full or cannot be written.
    """
    report = Report("Data set of composed pictures and pictograms")
    with whole_folder(out, inputs={"packages": packages}, overwrite=overwrite) as folder:
        _build_world(folder, packages, description, resolution, report)
        if with_pictograms:
            side = min(resolution, _PICTOGRAM_RESOLUTION)
            _build_pictograms(folder, packages, description, side, report, advance)
        report.write(folder)
    return report


def _build_world(
    folder: Path, packages: Path, description: WorldDescription, resolution: int, report: Report
) -> None:
    target = folder / "world"
    target.mkdir()
    sprites = make_sprites(packages, description, resolution)
    sprites.save(target / "sprites.npz")
    _write_json(target / "world.json", description.model_dump(mode="json", exclude_defaults=True))
    _write_json(target / "words.json", make_words(description, Names(packages)))
    credits = load_credits(packages, description)
    _write_json(target / "credits.json", [credit.record() for credit in credits])
    (target / "credits.md").write_text(credits_markdown(credits), "utf-8")
    counts = report.step("world")
    counts["things"] = len(description.things)
    counts["styles"] = len(description.styles)
    counts["sprites"] = sum(len(description.styles) - len(thing.without) for thing in description.things)
    counts["colours"] = len(description.colours)
    counts["light and dark colours"] = len(description.shades)
    counts["coloured backgrounds"] = len(description.backgrounds)
    counts["patterns"] = len(description.patterns)
    counts["scenes"] = len(description.scenes)
    for aspect in HELD_OUT_ASPECTS:
        held = [thing for thing in description.things if getattr(thing.held_out, aspect)]
        counts[f"things with a held-out {HELD_OUT_ASPECTS[aspect]}"] = len(held)
    world = World(description, sprites, min(resolution, _SHEET_RESOLUTION))
    report.step("kinds of training pictures, of the first 2,000").update(
        kind for index in range(_COUNTED) for kind in _kinds(world, draw_attributes(world, 0, index))
    )
    for split in SPLITS:
        _add_sheet(folder, report, f"world-{split}", CompositionDataset(world, split=split))
    for name, accept in _sheets(world).items():
        _add_sheet(folder, report, f"world-{name}", CompositionDataset(world, accept=accept))


def _add_sheet(folder: Path, report: Report, name: str, dataset: CompositionDataset) -> None:
    pixels, captions, _ = dataset.batch(0, _KIND_PICTURES)
    report.add_sheet(folder, name, list(pixels), captions)


def _kinds(world: World, attributes: Attributes) -> list[str]:
    """Returns the kinds of a picture that the report counts: of figures, of the background, and the style."""
    ground = world.grounds[attributes.background]
    if attributes.is_pair:
        figures = f"two things, one {attributes.relation} the other"
    elif attributes.count > 1:
        figures = f"{attributes.count} copies"
    else:
        figures = f"one thing, {attributes.size} size"
    if ground.kind:
        background = f"background: {ground.kind}"
    else:
        background = "background: white" if ground.colour == PLAIN else "background: plain colour"
    kinds = [figures, background, f"style: {attributes.style}"]
    if attributes.pose != "upright":
        kinds.append(f"pose: {attributes.pose}")
    if attributes.place != "middle":
        kinds.append("outside the middle")
    return kinds


def _sheets(world: World) -> dict[str, Accept]:
    """Returns what the further sheets show: each kind of picture, and each style."""

    def in_style(style: str) -> Accept:
        return lambda each: each.style == style and each.count == 1 and not each.is_pair

    return {
        "counts": lambda each: each.count > 1,
        "pairs": lambda each: each.is_pair,
        "sizes": lambda each: each.count == 1 and not each.is_pair and each.size != "usual",
        "poses": lambda each: each.pose != "upright",
        "shades": lambda each: any(figure.colour in world.description.shades for figure in each.figures),
        "patterns": lambda each: world.grounds[each.background].kind in PATTERNS,
        "scenes": lambda each: world.grounds[each.background].kind in SCENES,
        **{f"style-{style}": in_style(style) for style in world.styles},
    }


def _build_pictograms(
    folder: Path,
    packages: Path,
    description: WorldDescription,
    resolution: int,
    report: Report,
    advance: Advance,
) -> None:
    target = folder / "pictograms"
    target.mkdir()
    names = Names(packages)
    fingerprints = Fingerprints()
    pictures: list[_Picture] = []
    named: list[Pictogram] = []
    for style in description.styles:
        counts = report.step(f"name: {style.package}")
        named += read_pictograms(packages, style.package, style.word, names, counts)
    for done, pictogram in enumerate(named, start=1):
        advance(done, len(named))
        picture = _draw(pictogram, resolution, report)
        if picture:
            pictures.append(picture)
            fingerprints.add(Image.fromarray(pixels_of(picture.png)))
    clusters = fingerprints.clusters()
    splits = _split(pictures, clusters, description.pictograms)
    counts = report.step("compare")
    counts["pictures"] = len(pictures)
    counts["groups of near copies, or single pictures"] = len(set(clusters.tolist()))
    counts["dropped: near copy of a held-out picture"] = splits.count(None)
    refuse_empty([split for split in splits if split], SPLITS)
    for split in SPLITS:
        chosen = [
            picture for picture, chosen_split in zip(pictures, splits, strict=True) if chosen_split == split
        ]
        with ShardWriter(target, split, PICTOGRAM_SCHEMA) as writer:
            for picture in chosen:
                writer.write(_row(picture))
        report.step("split")[split] = writer.rows
        # In the order of their digests, which is random, so that a sheet shows all kinds.
        shown = sorted(chosen, key=lambda picture: picture.digest)[:SHEET_PICTURES]
        sheet = [pixels_of(picture.png) for picture in shown]
        report.add_sheet(folder, f"pictograms-{split}", sheet, [_caption(picture) for picture in shown])


def _draw(pictogram: Pictogram, resolution: int, report: Report) -> _Picture | None:
    name = f"{pictogram.label} ({pictogram.style})"
    try:
        drawn = Image.fromarray(pictogram.draw(_OVERSAMPLING * resolution))
    except ValueError as error:
        report.drop("rasterise", name, "cannot be drawn", str(error))
        return None
    visible = np.mean(np.array(drawn.getchannel("A")) > 0)
    if visible < _MIN_VISIBLE:
        report.drop("rasterise", name, "nothing to see")
        return None
    report.step("rasterise")["pictures"] += 1
    picture = flatten(drawn.resize((resolution, resolution), Image.Resampling.LANCZOS))
    return _Picture(pictogram, png_bytes(picture), hashlib.sha256(picture.tobytes()).hexdigest())


def _split(
    pictures: Sequence[_Picture], clusters: Int[np.ndarray, " pictures"], shares: Pictograms
) -> list[str | None]:
    """Returns the split of each picture, or None for near copies of pictures with held-out names.

    Some names are held out with all their pictures, and some pictures of the other names go to validation.
    """
    by_name = [
        choose({"held_out": shares.held_out_names}, share_of(0, picture.pictogram.code))
        for picture in pictures
    ]
    digests = [picture.digest for picture in pictures]
    by_picture = split_clusters(clusters, digests, {"validation": shares.validation})
    splits: dict[int, set[str]] = defaultdict(set)
    for cluster, split in zip(clusters.tolist(), by_name, strict=True):
        splits[cluster].add(split)
    return [
        "held_out" if name == "held_out" else None if "held_out" in splits[cluster] else picture
        for cluster, name, picture in zip(clusters.tolist(), by_name, by_picture, strict=True)
    ]


def _row(picture: _Picture) -> dict[str, object]:
    pictogram = picture.pictogram
    return {
        "image": picture.png,
        "caption": _caption(picture),
        "label": pictogram.label,
        "keywords": list(pictogram.keywords),
        "code": pictogram.code,
        "style": pictogram.style,
    }


def _caption(picture: _Picture) -> str:
    return f"{picture.pictogram.label} in {picture.pictogram.style} style"


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
