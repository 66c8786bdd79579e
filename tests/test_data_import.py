"""Anybody's pictures: read, cleaned, compared and split, with everything unusable counted and named."""

import csv
import io
import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from smalti.cli.data import register
from smalti.errors import InvalidInputError
from training.data.configuration import ImportSettings, read_import_settings
from training.data.importing import import_pictures
from training.data.near_duplicates import Fingerprints
from training.data.pictures import UnreadablePictureError, decode, pixels_of
from training.data.shards import ShardWriter, read_rows, shard_paths, splits_in
from training.data.sources import Entry, Problem, read_source
from training.data.splits import split_clusters

SETTINGS = ImportSettings(resolution=32, smallest_side=32, validation=0.3)


def picture(seed: int, size: tuple[int, int] = (48, 48), mode: str = "RGB") -> Image.Image:
    """Draws big soft blobs: no two seeds are near copies, and noise or scaling makes near copies."""
    blobs = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(blobs).resize(size, Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def make_folder(root: Path, count: int) -> Path:
    for number in range(count):
        path = root / f"{number % 3}" / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture(number)))
        path.with_suffix(".txt").write_text(f"blobs of kind {number}\n")
    return root


def make_csv(root: Path, count: int) -> Path:
    make_folder(root, count)
    with (root / "captions.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(["url", "image", "caption"])
        for number in range(count):
            image = f"{number % 3}/{number:03}.png"
            writer.writerow([f"https://example.org/{number}", image, f"blobs, of kind {number}"])
    return root / "captions.csv"


def make_jsonl(root: Path, count: int) -> Path:
    make_folder(root, count)
    lines = [
        json.dumps({"image": f"{number % 3}/{number:03}.png", "caption": f"blobs of kind {number}"})
        for number in range(count)
    ]
    (root / "captions.jsonl").write_text("\n".join(lines))
    return root / "captions.jsonl"


def make_tar(root: Path, count: int) -> Path:
    root.mkdir(exist_ok=True)
    for shard in range(2):
        with tarfile.open(root / f"{shard:05}.tar", "w") as archive:
            for number in range(shard, count, 2):
                add(archive, f"{number:06}.jpg", encoded(picture(number), "JPEG", quality=95))
                if number % 4 < 2:
                    add(archive, f"{number:06}.txt", f"blobs of kind {number}".encode())
                record = {"caption": f"blobs of kind {number}", "url": f"https://example.org/{number}"}
                add(archive, f"{number:06}.json", json.dumps(record).encode())
    return root


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def rows_of(data: Path) -> dict[str, list[dict[str, object]]]:
    return {split: list(read_rows(data, split)) for split in splits_in(data)}


@pytest.mark.parametrize("make", [make_folder, make_csv, make_jsonl, make_tar])
def test_every_kind_of_source(make: Callable[[Path, int], Path], tmp_path: Path) -> None:
    source = make(tmp_path / "source", 24)
    report = import_pictures(source, tmp_path / "data", SETTINGS)
    assert report.problems == []
    rows = rows_of(tmp_path / "data")
    assert set(rows) == {"train", "validation"}
    captions = [row["caption"] for split in rows.values() for row in split]
    assert len(captions) == 24
    assert {caption.rpartition(" ")[2] for caption in captions} == {str(number) for number in range(24)}  # type: ignore[attr-defined]
    for row in rows["train"]:
        number = int(str(row["caption"]).rpartition(" ")[2])
        pixels = pixels_of(row["image"])  # type: ignore[arg-type]
        expected = np.array(picture(number).resize((32, 32), Image.Resampling.LANCZOS))
        assert np.abs(pixels.astype(int) - expected).mean() < 4
        if make in (make_csv, make_tar):
            assert row["url"] == f"https://example.org/{number}"
    assert (tmp_path / "data" / "sheets" / "train.png").exists()
    assert not list((tmp_path / "data").glob("unsplit*"))


def test_the_split_follows_from_the_pictures(tmp_path: Path) -> None:
    folder = import_pictures(make_folder(tmp_path / "a", 24), tmp_path / "from-folder", SETTINGS)
    import_pictures(make_csv(tmp_path / "b", 24), tmp_path / "from-csv", SETTINGS)
    import_pictures(make_folder(tmp_path / "c", 36), tmp_path / "larger", SETTINGS)

    def sides(data: str) -> dict[object, str]:
        rows = rows_of(tmp_path / data)
        return {row["picture"]: split for split, content in rows.items() for row in content}

    assert sides("from-folder") == sides("from-csv")
    assert sides("from-folder").items() <= sides("larger").items()
    assert folder.counts["split"]["validation"] == list(sides("from-folder").values()).count("validation")


def test_twice_the_same_bytes(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "source", 12)
    for name in ("one", "two"):
        import_pictures(source, tmp_path / name, SETTINGS)
    one, two = (
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in ("one", "two")
    )
    assert one == two


def test_near_copies_stay_on_one_side(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(16):
        original = picture(number, (96, 96))
        noisy = np.array(original).astype(int) + np.random.default_rng(99).integers(-6, 7, (96, 96, 3))
        copies = {
            "a.png": encoded(original),
            "b.jpg": encoded(original, "JPEG", quality=60),
            "c.png": encoded(original.resize((60, 60))),
            "d.png": encoded(Image.fromarray(noisy.clip(0, 255).astype(np.uint8))),
        }
        for place, (ending, content) in enumerate(copies.items()):
            (source / f"{number:02}{ending}").write_bytes(content)
            (source / f"{number:02}{ending}").with_suffix(".txt").write_text(f"caption {'wxyz'[place]} of it")
    report = import_pictures(source, tmp_path / "data", SETTINGS)
    assert report.counts["compare"]["different pictures"] == 64
    assert report.counts["compare"]["groups of near copies, or single pictures"] == 16
    side = {str(row["name"]): split for split, rows in rows_of(tmp_path / "data").items() for row in rows}
    assert len(side) == 64
    assert len({(name[:2], split) for name, split in side.items()}) == 16

    settings = SETTINGS.model_copy(update={"keep_near_duplicates": False})
    import_pictures(source, tmp_path / "first-only", settings)
    names = [row["name"] for rows in rows_of(tmp_path / "first-only").values() for row in rows]
    assert sorted(names) == [f"{number:02}a.png" for number in range(16)]  # type: ignore[type-var]


def test_colour_alone_makes_another_picture() -> None:
    fingerprints = Fingerprints()
    for colour in ((200, 30, 30), (30, 30, 200), (203, 32, 28)):
        fingerprints.add(Image.new("RGB", (40, 40), colour))
    red, blue, almost_red = fingerprints.clusters().tolist()
    assert red == almost_red != blue
    assert Fingerprints().clusters().tolist() == []


def test_near_copies_are_found_across_blocks() -> None:
    fingerprints = Fingerprints()
    for number in range(1300):
        fingerprints.add(picture(number % 650, (24, 24)))
    clusters = fingerprints.clusters().tolist()
    assert clusters[:650] == clusters[650:]
    assert len(set(clusters)) > 640


def test_splits_have_their_shares() -> None:
    keys = [f"{number:08x}" for number in range(4000)]
    alone = np.arange(4000)
    splits = split_clusters(alone, keys, {"validation": 0.1, "test": 0.2})
    assert 340 < splits.count("validation") < 460
    assert 720 < splits.count("test") < 880
    assert split_clusters(alone, keys, {"validation": 0.1, "test": 0.2}, seed=1) != splits
    assert (
        split_clusters(alone[::-1] // 4, keys[::-1], {"validation": 0.5})
        == (split_clusters(alone // 4, keys, {"validation": 0.5})[::-1])
    )
    assert set(split_clusters(alone // 4, keys, {"validation": 0.5})[4:8]) in ({"train"}, {"validation"})


def test_several_captions_of_one_picture(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "source", 12)
    (source / "0" / "000.txt").write_text("first way\n\n second   way \nfirst way\n")
    (source / "0" / "000-again.png").write_bytes(encoded(picture(0)))
    (source / "0" / "000-again.txt").write_text("second way\nthird way\n")
    (source / "0" / "000-once-more.png").write_bytes(encoded(picture(0)))
    (source / "0" / "000-once-more.txt").write_text("first way")
    report = import_pictures(source, tmp_path / "data", SETTINGS)
    said = [
        (split, row["caption"])
        for split, rows in rows_of(tmp_path / "data").items()
        for row in rows
        if "way" in str(row["caption"])
    ]
    assert sorted(caption for _, caption in said) == ["first way", "second way", "third way"]  # type: ignore[type-var]
    assert len({split for split, _ in said}) == 1
    assert report.problems == [("0/000.png", "same picture and caption again")]
    assert report.counts["compare"]["different pictures"] == 12


def test_what_cannot_be_used_is_named_and_ends_nothing(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "source", 12)
    bad = {
        "caption-only.txt": b"a caption without its picture",
        "picture-only.png": encoded(picture(50)),
        "empty-caption.png": encoded(picture(51)),
        "empty-caption.txt": b" \n",
        "cut.png": encoded(picture(52, (200, 200)))[:900],
        "cut.txt": b"a picture that was cut off",
        "text.jpg": b"this is no picture",
        "text.txt": b"a text",
        "small.png": encoded(picture(53, (31, 90))),
        "small.txt": b"a small one",
        "long.png": encoded(picture(54, (200, 50))),
        "long.txt": b"a long one",
        "file-name.png": encoded(picture(55)),
        "file-name.txt": b"DSC_0042.JPG",
        "latin.png": encoded(picture(56)),
        "latin.txt": "Käse".encode("latin-1"),
    }
    for name, content in bad.items():
        (source / name).write_bytes(content)
    report = import_pictures(source, tmp_path / "data", SETTINGS)
    problems = {name: reason.partition(" (")[0] for name, reason in report.problems}
    assert problems == {
        "caption-only.txt": "caption without a picture",
        "picture-only.png": "picture without a caption",
        "empty-caption.png": "picture without a caption",
        "cut.png": "cannot be read",
        "text.jpg": "cannot be read",
        "small.png": "too small",
        "long.png": "too long",
        "file-name.png": "caption that says nothing",
        "latin.txt": "cannot be read",
    }
    written = json.loads((tmp_path / "data" / "report.json").read_text())
    assert {problem["name"] for problem in written["problems"]} == set(problems)
    assert written["counts"]["read"]["dropped: cannot be read"] == 3
    assert written["counts"]["read"]["entries"] == 21
    assert written["counts"]["clean"]["kept pictures with captions"] == 12


def test_rows_that_cannot_be_used(tmp_path: Path) -> None:
    make_folder(tmp_path, 2)
    (tmp_path / "list.jsonl").write_text(
        '{"image": "0/000.png", "caption": ["one", 7, "two"]}\n'
        "\n{not json}\n[1]\n"
        '{"image": "missing.png", "caption": "c"}\n{"caption": "c"}\n'
        '{"image": "1/001.png", "caption": null}\n'
        '{"image": "1/001.png", "caption": "kept", "url": "https://images.shutterstock.com/x.jpg"}\n'
    )
    entries = list(read_source(tmp_path / "list.jsonl"))
    reasons = [
        (record.name, record.reason) if isinstance(record, Problem) else record.captions for record in entries
    ]
    assert reasons == [
        ("one", "two"),
        ("list.jsonl, line 3", "cannot be read"),
        ("list.jsonl, line 4", "cannot be read"),
        ("missing.png", "caption without a picture"),
        ("list.jsonl, line 6", "caption without a picture"),
        ("1/001.png", "picture without a caption"),
        ("kept",),
    ]
    settings = SETTINGS.model_copy(update={"validation": 0.0})
    report = import_pictures(tmp_path / "list.jsonl", tmp_path / "data", settings)
    assert ("1/001.png", "host of watermarked pictures (shutterstock.com)") in report.problems
    (tmp_path / "list.csv").write_text("image,text\na,b\n")
    with pytest.raises(InvalidInputError, match="has no column 'caption'"):
        list(read_source(tmp_path / "list.csv"))
    # One bad byte costs one row.
    for name, content in (
        ("list.tsv", b"image\tcaption\n0/000.png\t\xff\n0/000.png\tgood\n"),
        (
            "more.jsonl",
            b'{"image": "0/000.png", "caption": "\xff"}\n{"image": "0/000.png", "caption": "good"}\n',
        ),
    ):
        (tmp_path / name).write_bytes(content)
        broken, good = read_source(tmp_path / name)
        assert isinstance(broken, Problem)
        assert broken.reason == "cannot be read"
        assert isinstance(good, Entry)
        assert good.captions == ("good",)
    (tmp_path / "quote.csv").write_text('image,caption\n0/000.png,"' + "x" * (1 << 20) + "y")
    [endless] = read_source(tmp_path / "quote.csv")
    assert isinstance(endless, Problem)


def test_damaged_archives(tmp_path: Path) -> None:
    whole = make_tar(tmp_path / "tars", 8) / "00000.tar"
    content = whole.read_bytes()
    whole.write_bytes(content[:1024])
    (tmp_path / "tars" / "00002.tar").write_bytes(b"no archive" * 100)
    with tarfile.open(tmp_path / "tars" / "00003.tar", "w") as archive:
        add(archive, "../../outside.png", encoded(picture(70)))
        add(archive, "../../outside.txt", b"a name that climbs out")
        add(archive, "lonely.txt", b"no picture")
        add(archive, "silent.png", encoded(picture(71)))
        add(archive, "broken.png", encoded(picture(72)))
        add(archive, "broken.json", b"{")
    report = import_pictures(
        tmp_path / "tars", tmp_path / "data", SETTINGS.model_copy(update={"validation": 0.0})
    )
    reasons = {name: reason.partition(" (")[0] for name, reason in report.problems}
    assert reasons.pop("00000.tar") == "cannot be read"
    assert reasons == {
        "00002.tar": "cannot be read",
        "00003.tar: lonely": "caption without a picture",
        "00003.tar: silent": "picture without a caption",
        "00003.tar: broken": "cannot be read",
    }
    names = {row["name"] for row in rows_of(tmp_path / "data")["train"]}
    assert "00003.tar: ../../outside" in names
    assert {"00001.tar: 000001", "00001.tar: 000007"} <= names
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "tars"]


def test_pictures_of_every_mode_lie_on_white() -> None:
    transparent = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert decode(encoded(transparent)).getpixel((0, 0)) == (255, 255, 255)
    half = Image.new("LA", (4, 4), (0, 128))
    assert decode(encoded(half)).getpixel((0, 0)) == (127, 127, 127)
    palette = picture(1).quantize(8)
    assert decode(encoded(palette)).mode == "RGB"
    assert decode(encoded(Image.new("CMYK", (4, 4)), "JPEG")).mode == "RGB"
    turned = Image.new("RGB", (6, 3))
    exif = turned.getexif()
    exif[0x0112] = 6
    assert decode(encoded(turned, "JPEG", exif=exif)).size == (3, 6)


def test_a_picture_that_would_fill_the_memory_is_not_decoded() -> None:
    bomb = encoded(Image.new("1", (9_600, 9_600)))
    assert len(bomb) < 100_000
    with pytest.raises(UnreadablePictureError, match="DecompressionBomb"):
        decode(bomb)


def test_shards_are_cut_and_read_in_order(tmp_path: Path) -> None:
    import pyarrow as pa

    schema = pa.schema([("number", pa.int64())])
    for count, files in ((0, 0), (9, 1), (10, 1), (11, 2), (35, 4)):
        folder = tmp_path / str(count)
        folder.mkdir()
        with ShardWriter(folder, "train", schema, rows_per_shard=10) as writer:
            for number in range(count):
                writer.write({"number": number})
        assert writer.rows == count
        assert len(shard_paths(folder, "train")) == files
        assert [row["number"] for row in read_rows(folder, "train")] == list(range(count))
    (tmp_path / "9" / "train-00000.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(InvalidInputError, match="no readable Parquet"):
        list(read_rows(tmp_path / "9", "train"))
    with pytest.raises(InvalidInputError, match="no Parquet shard"):
        splits_in(tmp_path)


def test_bad_input_leaves_nothing_behind(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "source", 3)
    captions = tmp_path / "captions"
    captions.mkdir()
    (captions / "a.txt").write_text("no pictures at all")
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "list.xml").write_text("<a/>")
    before = sorted(tmp_path.rglob("*"))
    for given, settings, message in (
        (tmp_path / "nowhere", SETTINGS, r"source: there is no file or folder"),
        (tmp_path / "list.xml", SETTINGS, r"source: .* is no folder, \.csv"),
        (captions, SETTINGS, r"no picture that can be used \(1 x caption without a picture\)"),
        (empty, SETTINGS, r"source: .*no picture that can be used$"),
        (source, SETTINGS.model_copy(update={"validation": 0.0001}), r"validation: none of 3 pictures"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            import_pictures(given, tmp_path / "data", settings)
        assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(InvalidInputError, match=r"out: .*is not empty"):
        import_pictures(source, captions, SETTINGS)
    with pytest.raises(InvalidInputError, match=r"out: .*is a file"):
        import_pictures(source, tmp_path / "list.xml", SETTINGS)


def test_overwriting_keeps_the_old_until_the_new_is_whole(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "source", 12)
    import_pictures(source, tmp_path / "data", SETTINGS)
    old = {path.name: path.read_bytes() for path in (tmp_path / "data").glob("*.parquet")}
    none = SETTINGS.model_copy(update={"smallest_side": 500})
    with pytest.raises(InvalidInputError, match="12 x too small"):
        import_pictures(source, tmp_path / "data", none, overwrite=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "data").glob("*.parquet")} == old
    import_pictures(
        source, tmp_path / "data", SETTINGS.model_copy(update={"validation": 0.0}), overwrite=True
    )
    assert splits_in(tmp_path / "data") == ["train"]


FULL_DISK = """
import resource, sys
from pathlib import Path
from smalti.errors import SmaltiError
from training.data.importing import import_pictures
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    import_pictures(Path(sys.argv[1]), Path(sys.argv[2]))
except SmaltiError as error:
    print(error)
"""


def test_a_full_disk_is_one_line_and_nothing_half_written(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "source", 12)
    for path in source.rglob("*.png"):
        picture(int(path.stem), (80, 80)).save(path)
    out = tmp_path / "data"
    command = [sys.executable, "-c", FULL_DISK, str(source), str(out)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == f"{out} cannot be written: the disk is full\n"
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_settings_files(tmp_path: Path) -> None:
    path = tmp_path / "import.toml"
    path.write_text("resolution = 64\nvalidation = 0.1\nkeep_near_duplicates = false\n")
    assert read_import_settings(path) == ImportSettings(
        resolution=64, validation=0.1, keep_near_duplicates=False
    )
    for content, message in {
        "resolutoin = 64": r"import\.toml: resolutoin: there is no such key",
        "resolution = 'big'": r"import\.toml: resolution: .*valid integer",
        "validation = 1.0": r"import\.toml: validation: .*less than 1",
        "validation = 0.5\ntest = 0.5": r"import\.toml: .*nothing to train on",
        "= 1": r"import\.toml: cannot be read as TOML",
    }.items():
        path.write_text(content)
        with pytest.raises(InvalidInputError, match=message) as caught:
            read_import_settings(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(InvalidInputError, match="cannot be read"):
        read_import_settings(tmp_path / "none.toml")


def test_the_command(tmp_path: Path) -> None:
    app = typer.Typer()
    register(app)
    source = make_folder(tmp_path / "source", 12)
    (source / "alone.txt").write_text("nothing to see")
    (tmp_path / "import.toml").write_text("resolution = 32\nsmallest_side = 32\nvalidation = 0.3\n")
    command = [
        "data",
        "import",
        str(source),
        str(tmp_path / "data"),
        "--config",
        str(tmp_path / "import.toml"),
    ]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "not used: 1, each named in" in result.stdout
    rows = sum(pq.read_metadata(path).num_rows for path in (tmp_path / "data").glob("*.parquet"))
    assert rows == 12


def test_every_setting_is_documented() -> None:
    documentation = (Path(__file__).parents[1] / "docs" / "data.md").read_text("utf-8")
    documented = re.findall(
        r"^\| `(\w+)` \| (\S+) \|", documentation.partition("`--config FILE`")[2], re.MULTILINE
    )
    defaults = {name: json.dumps(value) for name, value in ImportSettings().model_dump().items()}
    assert dict(documented) == defaults
