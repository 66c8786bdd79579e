"""Sources of pictures: each kind is read, and unusable entries are counted and named."""

import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.captioned_pictures import add_file, encoded, make_csv, make_folder, make_jsonl, make_tar, picture
from smalti.errors import InvalidInputError
from smalti.training.data.configuration import ImportSettings
from smalti.training.data.importing import import_pictures
from smalti.training.data.pictures import UnreadablePictureError, decode, pixels_of
from smalti.training.data.shards import read_rows, splits_in
from smalti.training.data.sources import Entry, Problem, read_source

SETTINGS = ImportSettings(resolution=32, smallest_side=32, validation=0.3)


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


def test_unusable_entries_are_named_and_stop_nothing(tmp_path: Path) -> None:
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
    with pytest.raises(InvalidInputError, match="must have a column 'caption'"):
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
        add_file(archive, "../../outside.png", encoded(picture(70)))
        add_file(archive, "../../outside.txt", b"a name that climbs out")
        add_file(archive, "lonely.txt", b"no picture")
        add_file(archive, "silent.png", encoded(picture(71)))
        add_file(archive, "broken.png", encoded(picture(72)))
        add_file(archive, "broken.json", b"{")
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


def test_pictures_of_every_mode_are_placed_on_white() -> None:
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
    with pytest.raises(UnreadablePictureError, match="has 9600 x 9600 pixels; at most 90000000 in all"):
        decode(bomb)


def reasons(source: Path) -> list[tuple[str, str]]:
    """Returns the captions of the entries of a source, and the names and reasons of its problems."""
    return [
        ("kept", record.captions[0]) if isinstance(record, Entry) else (record.name, record.reason)
        for record in read_source(source)
    ]


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_a_quotation_mark_costs_its_row_and_no_other(tmp_path: Path, ending: str) -> None:
    for number in range(8):
        (tmp_path / f"p{number}.png").write_bytes(encoded(picture(number)))
    captions = [
        'plain 5" nail',
        '"quoted, whole"',
        '"never closed',
        "one\nin between",
        'closed" too late',
        '"two ""lines""\nof one caption"',
        '"closed" and more',
        '"last',
    ]
    rows = [f"p{number}.png,{caption}" for number, caption in enumerate(captions)]
    content = "\r\n".join(["Image , caption", *rows])
    comma = "," if ending == "csv" else "\t"
    table = tmp_path / f"list.{ending}"
    table.write_text(content.replace(",", comma), newline="")
    name = f"list.{ending}, line"
    assert reasons(table) == [
        ("kept", 'plain 5" nail'),
        ("kept", f"quoted{comma} whole"),
        (f"{name} 4", "cannot be read"),
        ("kept", "one"),
        ("in between", "caption without a picture"),
        ("kept", 'closed" too late'),
        ("kept", 'two "lines"\nof one caption'),
        (f"{name} 10", "cannot be read"),
        (f"{name} 11", "cannot be read"),
    ]


def test_tables_as_programs_write_them(tmp_path: Path) -> None:
    (tmp_path / "p.png").write_bytes(encoded(picture(1)))
    for content in (
        "image\tcaption\np.png\ta cät\n".encode("utf-16"),
        b"\xef\xbb\xbfimage\tcaption\rp.png\ta c\xc3\xa4t\r",
        "image\tcaption\n\n \t \np.png\ta cät\textra".encode(),
    ):
        (tmp_path / "list.TSV").write_bytes(content)
        assert reasons(tmp_path / "list.TSV") == [("kept", "a cät")]
    long = b"image\tcaption\np.png\t" + b"x" * (5 << 20) + b"\np.png\tgood\np.png\t\0\n"
    (tmp_path / "list.tsv").write_bytes(long)
    assert reasons(tmp_path / "list.tsv") == [
        ("list.tsv, line 2", "cannot be read"),
        ("kept", "good"),
        ("list.tsv, line 4", "cannot be read"),
    ]
    (tmp_path / "none.csv").touch()
    with pytest.raises(InvalidInputError, match="must have a column 'caption'"):
        list(read_source(tmp_path / "none.csv"))


def test_texts_that_no_report_can_hold(tmp_path: Path) -> None:
    (tmp_path / "p.png").write_bytes(encoded(picture(1)))
    deep = '{"image": "p.png", "caption": ' + "[" * 100_000 + "]" * 100_000 + "}"
    lines = [
        deep,
        '{"image": "p.png", "caption": "half \\ud83d"}',
        '{"image": "p.png", "caption": "c", "url": "\\ud83d"}',
        '{"image": "\\ud83d\\u0000.png", "caption": "c"}',
        '{"image": "' + "x" * 5000 + '", "caption": "c"}',
        '{"image": "p.png", "caption": NaN}',
        '{"image": "p.png", "caption": "nul \\u0000"}',
        '{"image": "p.png", "caption": ' + "9" * 5000 + "}",
        '{"image": "p.png", "caption": "good \\ud83d\\udc31"}',
        '{"caption": "' + "x" * (5 << 20) + '"}',
        '{"image": "p.png", "caption": "good"}',
    ]
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    found = list(read_source(tmp_path / "list.jsonl"))
    assert [record.captions[0] for record in found if isinstance(record, Entry)] == ["good 🐱", "good"]
    assert len(found) == len(lines)
    report = import_pictures(
        tmp_path / "list.jsonl", tmp_path / "data", SETTINGS.model_copy(update={"validation": 0.0})
    )
    assert "0x" not in (tmp_path / "data" / "report.json").read_text()
    assert report.counts["split"]["train"] == 2


def test_files_of_other_systems(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "__MACOSX").mkdir(parents=True)
    photo, latin = encoded(picture(1), "JPEG"), os.fsdecode(b"caf\xe9")
    files = {
        "fox.JPG": photo, "fox.TXT": b"a fox", "._fox.JPG": b"Mac OS X", "._fox.TXT": b"Mac OS X", ".DS_Store": b"x",
        "__MACOSX/fox.JPG": b"x", f"{latin}.png": photo, f"{latin}.txt": b"a coffee", "a\nb.jpeg": photo,
        "a\nb.txt": "\ufeffa line".encode("utf-16-le"), "silent\n\x1b.jpg": photo,
    }  # fmt: skip
    for name, content in files.items():
        (source / name).write_bytes(content)
    assert sorted(reasons(source)) == [
        ("kept", "a coffee"),
        ("kept", "a fox"),
        ("kept", "a line"),
        ("silent\\x0a\\x1b.jpg", "picture without a caption"),
    ]
    assert {record.name for record in read_source(source) if isinstance(record, Entry)} == {
        "a\\x0ab.jpeg",
        "caf\\xe9.png",
        "fox.JPG",
    }
    shards = tmp_path / "shards"
    shards.mkdir()
    with tarfile.open(shards / "MAC.TAR", "w") as archive:
        for name, content in files.items():
            add_file(archive, name, content)
        sparse = tarfile.TarInfo("huge.png")
        sparse.size = 0
        archive.addfile(sparse)
    (shards / "._MAC.TAR").write_bytes(b"Mac OS X")
    assert [record for record in reasons(shards) if record[0] == "kept"] == [
        ("kept", "a fox"),
        ("kept", "a coffee"),
        ("kept", "a line"),
    ]
