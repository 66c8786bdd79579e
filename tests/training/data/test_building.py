"""The shipped data set, built from a small set of packages that is in the repository."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from harness.paths import SAMPLES
from smalti.cli.data import register
from smalti.errors import InvalidInputError, SmaltiError
from smalti.outputs import MARK_FILE
from smalti.text.vocabulary import Words
from smalti.training.data.near_duplicates import Fingerprints
from smalti.training.data.pictures import pixels_of
from smalti.training.data.report import Report
from smalti.training.data.world.building import build
from smalti.training.data.world.composition import CompositionDataset, World
from smalti.training.data.world.description import WorldDescription, load_description
from smalti.training.data.world.packages import pictograms as pictograms_module
from smalti.training.data.world.packages.pictograms import install_packages

SPLITS = ("train", "validation", "held_out")
SHEETS = (
    *("counts", "pairs", "sizes", "poses", "shades", "patterns", "scenes"),
    *("style-plain", "style-round"),
)
PACKAGES = SAMPLES / "packages"
MANIFESTS = Path(pictograms_module.__file__).parent


@pytest.fixture(scope="module")
def description() -> WorldDescription:
    return load_description(SAMPLES / "world.json")


@pytest.fixture(scope="module")
def report(description: WorldDescription, data: Path) -> Report:
    return build(data, PACKAGES, description)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("built") / "data"


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    register(app)
    return app


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_same_input_gives_the_same_bytes(
    report: Report, data: Path, description: WorldDescription, tmp_path: Path
) -> None:
    build(tmp_path / "elsewhere", PACKAGES, description)
    assert contents(tmp_path / "elsewhere") == contents(data)
    assert set(contents(data)) == {
        MARK_FILE,
        "report.json",
        "report.md",
        *(f"sheets/{kind}-{split}.png" for kind in ("world", "pictograms") for split in SPLITS),
        *(f"sheets/world-{kind}.png" for kind in SHEETS),
        *(f"pictograms/{split}-00000.parquet" for split in SPLITS),
        *(
            f"world/{name}"
            for name in ("sprites.npz", "world.json", "words.json", "credits.json", "credits.md")
        ),
    }


def test_every_icon_is_counted_once(report: Report, data: Path) -> None:
    counts = json.loads((data / "report.json").read_text())["counts"]
    for package in ("@sample/plain", "@sample/round"):
        step = counts[f"name: {package}"]
        assert step == {
            "icons": 24,
            "named": 17,
            "dropped: clock face": 1,
            "dropped: flag": 1,
            "dropped: no code points": 2,
            "dropped: no name": 1,
            "dropped: skin tone": 1,
            "dropped: squared letters": 1,
        }
    assert counts["rasterise"] == {
        "pictures": 30,
        "dropped: cannot be drawn": 2,
        "dropped: nothing to see": 2,
    }
    assert sum(counts["split"].values()) == 30 - counts["compare"]["dropped: near copy of a held-out picture"]
    problems = json.loads((data / "report.json").read_text())["problems"]
    assert [problem["name"] for problem in problems] == [
        "warning (plain)",
        "dotted square (plain)",
        "warning (round)",
        "dotted square (round)",
    ]
    text = (data / "report.md").read_text()
    assert "| rasterise | pictures | 30 |" in text
    assert "![world-train](sheets/world-train.png)" in text


def test_pictograms_are_split_by_name_and_picture(report: Report, data: Path) -> None:
    tables = {
        split: pq.read_table(data / "pictograms" / f"{split}-00000.parquet").to_pylist() for split in SPLITS
    }
    codes = {split: {row["code"] for row in rows} for split, rows in tables.items()}
    assert not codes["held_out"] & (codes["train"] | codes["validation"])
    fingerprints, sides = Fingerprints(), []
    for split, rows in tables.items():
        for row in rows:
            fingerprints.add(Image.fromarray(pixels_of(row["image"])))
            sides.append(split)
    clusters = fingerprints.clusters().tolist()
    assert len(set(zip(clusters, sides, strict=True))) == len(set(clusters))
    box = next(row for rows in tables.values() for row in rows if row["label"] == "package")
    assert box["caption"] == f"package in {box['style']} style"
    assert box["keywords"] == ["carton", "parcel", "package", "moving box"]
    assert pixels_of(box["image"]).shape == (64, 64, 3)


def test_near_copies_of_held_out_names_are_dropped(report: Report, data: Path) -> None:
    # The star and the shooting star look the same, and only the second of these names is held out.
    labels = {
        split: {row["label"] for row in pq.read_table(data / f"pictograms/{split}-00000.parquet").to_pylist()}
        for split in SPLITS
    }
    assert "shooting star" in labels["held_out"]
    assert not any("star" in names for names in labels.values())
    assert report.counts["compare"]["dropped: near copy of a held-out picture"] == 2


def test_a_trainer_needs_only_the_folder_of_the_world(report: Report, data: Path) -> None:
    world = World.load(data / "world")
    pixels, captions, attributes = CompositionDataset(world).batch(0, 5)
    assert pixels.shape == (5, 64, 64, 3)
    assert len(captions) == len(attributes) == 5
    with Image.open(data / "sheets" / "world-train.png") as sheet:
        first = np.array(sheet.convert("RGB"))[:64, :64]
    assert (first == pixels[0]).all()


def test_words(report: Report, data: Path) -> None:
    words = json.loads((data / "world" / "words.json").read_text())
    assert words["things"] == ["ball", "box", "star", "tree", "grapes", "unit"]
    assert words["plurals"] == ["grapes"]
    assert words["sizes"] == ["big", "small", "tiny"]
    assert words["backgrounds"] == ["white", "red", "blue", "gray"]
    assert {"a", "an", "picture", "background", "style", "next"} <= set(words["grammar"])
    synonyms = words["synonyms"]
    # From the description, the labels, the plurals, and keywords that both sources list.
    assert synonyms["grey"] == "gray"
    assert synonyms["globe"] == synonyms["soccer ball"] == "ball"
    assert synonyms["parcel"] == "box"
    assert words["many"] == {
        **{"ball": "balls", "box": "boxes", "star": "stars", "tree": "trees", "unit": "units"}
    }
    assert words["counts"] == {"one": 1, "1": 1, "two": 2, "2": 2, "three": 3, "3": 3, "four": 4, "4": 4}
    assert words["scenes"] == ["on a meadow", "on grass", "at night"]
    assert words["patterns"] == {"striped": "stripes", "gradient": "gradient"}
    assert {"in front of", "next to", "to the left of"} <= set(words["relations"])
    assert "in the top left corner" in words["places"]
    Words.model_validate(words)
    assert synonyms["fir"] == "tree"
    # Listed by one source alone, refused by the description, or a known word itself.
    for word in ("sparkle", "carton", "night", "star", "grapeses"):
        assert word not in synonyms
    # The nearest thing of the same kind in the order of pictograms, where a thing before is nearer than one after
    # (the moon is between star and drop).
    assert words["neighbours"] == {
        **{"moon": "star", "crescent moon": "star", "kite": "box", "house": "tree", "mountain": "tree"},
        **{"heart": "grapes", "diamond": "grapes", "mark": "grapes", "cross mark": "grapes", "fish": "tree"},
    }


def test_credits_name_everybody(report: Report, data: Path) -> None:
    text = (data / "world" / "credits.md").read_text()
    for part in (
        "| `@sample/plain` | 1.0.0 | [Plain shapes](https://example.org/shapes) | © Smalti | [MIT]",
        "| `@sample/round` | 1.0.0 | [Round shapes](https://example.org/shapes) | © Smalti | [Apache-2.0]",
        "[Sample keywords](https://github.com/example/keywords) | © Somebody Else |",
        "* Sample keywords: Copyright (c) 2014 Somebody Else",
        "> Permission is hereby granted",
        "recoloured",
    ):
        assert part in text


def test_the_shipped_packages_are_pinned() -> None:
    manifest = json.loads((MANIFESTS / "package.json").read_text())
    lock = json.loads((MANIFESTS / "package-lock.json").read_text())
    assert lock["packages"][""]["dependencies"] == manifest["dependencies"]
    for name, version in manifest["dependencies"].items():
        assert lock["packages"][f"node_modules/{name}"]["version"] == version
    for name, package in lock["packages"].items():
        assert "resolved" not in package
        assert not name or package["integrity"].startswith("sha512-")
    for style in load_description().styles:
        assert style.package in manifest["dependencies"]


def test_installed_packages_are_not_installed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SmaltiError, match="npm is not installed"):
        install_packages(tmp_path / "packages")
    prepared(tmp_path / "packages")
    assert install_packages(tmp_path / "packages") == tmp_path / "packages" / "node_modules"


def test_a_failure_of_npm_is_reported_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error no network' >&2\necho more >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(SmaltiError, match=r"^npm ci failed in .*packages: npm error no network$"):
        install_packages(tmp_path / "packages")
    assert not (tmp_path / "packages" / ".installed-lock.json").exists()


def prepared(folder: Path) -> None:
    """Makes a folder look like `npm ci` leaves it, with the sample packages."""
    folder.mkdir()
    (folder / "node_modules").symlink_to(PACKAGES)
    (folder / ".installed-lock.json").write_bytes((MANIFESTS / "package-lock.json").read_bytes())


def test_commands(app: typer.Typer, tmp_path: Path, description: WorldDescription) -> None:
    prepared(tmp_path / "packages")
    arguments = ["data", "build", str(tmp_path / "out"), "--packages", str(tmp_path / "packages")]
    arguments += ["--world", str(SAMPLES / "world.json"), "--no-pictograms"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "out" / "pictograms").exists()
    again = CliRunner().invoke(app, arguments)
    assert isinstance(again.exception, InvalidInputError)
    assert "is not empty; give another folder, or --overwrite" in str(again.exception)
    assert CliRunner().invoke(app, [*arguments, "--overwrite"]).exit_code == 0
    sheet = tmp_path / "sheet.png"
    compose = [
        "data",
        "compose",
        str(tmp_path / "out" / "world"),
        "--out",
        str(sheet),
        "--split",
        "held_out",
        "--resolution",
        "64",
    ]
    result = CliRunner().invoke(app, [*compose, "--count", "13"])
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) == 13
    with Image.open(sheet) as image:
        assert image.size == (12 * 122, 2 * 98)
    for wrong, message in (
        (["--split", "test"], "split: must be one of train, validation, held_out, not 'test'"),
        (["--resolution", "65"], r"resolution: must be one of \(64, 80, 96, 128, 160, 192\), not 65"),
        (
            ["--count", "1", "--containing", "a cow"],
            "containing: only 0 of 1,000 captions contain 'a cow', not 1",
        ),
        (["--out", str(tmp_path / "no" / "sheet.png")], "out: .*there is no folder"),
    ):
        result = CliRunner().invoke(app, [*compose, *wrong])
        assert isinstance(result.exception, InvalidInputError)
        with pytest.raises(InvalidInputError, match=message):
            raise result.exception


def changed(description: dict[str, object], **fields: object) -> dict[str, object]:
    return {**description, **fields}


def test_a_wrong_description_names_the_key(tmp_path: Path) -> None:
    good = json.loads((SAMPLES / "world.json").read_text())
    thing = good["things"][0]
    cases = {
        r"colurs: there is no such key": changed(good, colurs={}),
        r"things\.0\.hue: there is no such key": changed(
            good, things=[{**thing, "hue": 1}, *good["things"][1:]]
        ),
        r"things: 'ball' must be listed only once": changed(good, things=[*good["things"], thing]),
        r"styles: 'plain' must be listed only once": changed(good, styles=good["styles"] * 2),
        r"colours\.red\.0: .*less than or equal to 255": changed(good, colours={"red": [256, 0, 0]}),
        r"'ball' holds out 'red', which must be one of the colours": changed(
            good, colours={"green": [1, 2, 3]}, shades={}
        ),
        r"'box' holds out 'gray', which must be one of the backgrounds": changed(
            good, backgrounds={"blue": [1, 2, 3], "red": [3, 2, 1]}
        ),
        r"'white' always exists": changed(
            good, backgrounds={**good["backgrounds"], "white": [255, 255, 255]}
        ),
        r"'natural' always exists": changed(good, colours={**good["colours"], "natural": [1, 2, 3]}),
        r"layout: .*step: must keep a figure of the usual size inside": changed(
            good, layout={**good["layout"], "step": 9}
        ),
        r"layout: .*must have tiny < few": changed(good, layout={**good["layout"], "tiny": 27}),
        r"chances\.beside: .*less than or equal to 1": changed(
            good, chances={**good["chances"], "beside": 1.5}
        ),
        r"chances: .*beside, above, front, counted: must add up to at most 1": changed(
            good, chances={**good["chances"], "beside": 0.9}
        ),
        r"version: ": changed(good, version=1),
        r"shades: 'dark mauve' must end in one of the colours": changed(
            good, shades={"dark mauve": [1, 2, 3]}
        ),
        r"never_posed: 'cow' must be one of the things": changed(good, never_posed=["cow"]),
        r"'ball' holds out 'beach', which must be one of the patterns or scenes": changed(
            good, things=[{**thing, "held_out": {**thing["held_out"], "kind": "beach"}}, *good["things"][1:]]
        ),
        r"'ball' is without 'oil', which must be one of the styles": changed(
            good, things=[{**thing, "without": ["oil"]}, *good["things"][1:]]
        ),
        r"'ball' must keep at least one style": changed(
            good, things=[{**thing, "without": ["plain", "round"]}, *good["things"][1:]]
        ),
    }
    path = tmp_path / "world.json"
    for message, content in cases.items():
        path.write_text(json.dumps(content))
        with pytest.raises(InvalidInputError, match=message) as caught:
            load_description(path)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)
    path.write_text("{")
    with pytest.raises(InvalidInputError, match="is not JSON"):
        load_description(path)


def test_a_thing_without_a_picture_leaves_nothing_behind(
    description: WorldDescription, tmp_path: Path
) -> None:
    for label, message in (
        ("unicorn", "ball: @sample/plain must have a picture named 'unicorn'"),
        ("warning", "ball: its picture in @sample/plain: "),
        ("dotted square", "ball: its picture in @sample/plain: the picture is empty"),
    ):
        things = (description.things[0].model_copy(update={"label": label}), *description.things[1:])
        with pytest.raises(InvalidInputError, match=message):
            build(tmp_path / "data", PACKAGES, description.model_copy(update={"things": things}))
        assert list(tmp_path.iterdir()) == []
    style = description.styles[0].model_copy(update={"package": "@sample/none"})
    with pytest.raises(InvalidInputError, match=r"packages: .*cannot be read"):
        build(tmp_path / "data", PACKAGES, description.model_copy(update={"styles": (style,)}))


def test_an_empty_split_is_refused(description: WorldDescription, tmp_path: Path) -> None:
    shares = description.pictograms.model_copy(update={"held_out_names": 0.0})
    with pytest.raises(InvalidInputError, match="held_out: none of 30 pictures is in this split"):
        build(tmp_path / "data", PACKAGES, description.model_copy(update={"pictograms": shares}))
    assert list(tmp_path.iterdir()) == []
