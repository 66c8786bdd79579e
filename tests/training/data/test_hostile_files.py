"""Hostile files and any bytes at all: a row is lost and named, a call is refused in one line, nothing else happens."""

import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from harness import hostile
from harness.captioned_pictures import encoded
from harness.hostile_pictures import exif_block, jpeg_with_exif
from smalti.errors import InvalidInputError
from smalti.picture_files.header import read_header
from smalti.training.data.configuration import ImportSettings, load_import_settings
from smalti.training.data.importing import import_pictures
from smalti.training.data.pictures import UnreadablePictureError, decode
from smalti.training.data.sources import Entry, Record, read_source

GOOD = encoded(Image.fromarray(np.arange(96 * 96 * 3, dtype=np.uint8).reshape(96, 96, 3)), "PNG")
UNREADABLE = ("cut.tar", "changed.tar", "zeros.tar", "text.tar")


def check_records(records: list[Record]) -> None:
    for record in records:
        record.name.encode()
        assert len(record.name.splitlines()) <= 1
        if isinstance(record, Entry):
            for text in (*record.captions, record.address or ""):
                text.encode()
        else:
            assert len(record.detail.encode().splitlines()) <= 1
            assert " at 0x" not in record.detail


@pytest.mark.parametrize("name", hostile.tables())
def test_tables_lose_their_bad_rows_only(tmp_path: Path, name: str) -> None:
    (tmp_path / "good.png").write_bytes(GOOD)
    (tmp_path / name).write_bytes(hostile.tables()[name])
    records = list(read_source(tmp_path / name))
    check_records(records)
    assert ("a good row",) in [record.captions for record in records if isinstance(record, Entry)]


@pytest.mark.parametrize("name", hostile.archives())
def test_archives_lose_their_bad_samples_only(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(hostile.archives()[name])
    records = list(read_source(tmp_path / name))
    check_records(records)
    kept = [record.captions for record in records if isinstance(record, Entry)]
    assert (("a good row",) in kept) is (name not in UNREADABLE)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_all_of_them_at_once(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name, content in hostile.pictures().items():
        (source / name).write_bytes(content)
        (source / name).with_suffix(".txt").write_text(f"what {name} shows")
    (source / "good.png").write_bytes(GOOD)
    (source / "good.txt").write_text("a good row")
    settings = ImportSettings(resolution=32, smallest_side=32, validation=0.0)
    report = import_pictures(source, tmp_path / "data", settings)
    read = {name for name, _ in report.problems}
    # Good pixels with bad metadata, or under the wrong ending, are kept.
    for name in ("texts.png", "profile.png", "exif.png", "exif.jpg", "loop.jpg", "sixteen.png"):
        assert name not in read
    for name in ("page.jpg", "giant.png", "none.png", "signed.tif", "cut.webp", "empty.gif"):
        assert name in read
    again = import_pictures(source, tmp_path / "again", settings)
    assert again.problems == report.problems


@pytest.mark.parametrize("name", hostile.settings())
def test_settings_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(hostile.settings()[name])
    with pytest.raises(InvalidInputError) as refused:
        load_import_settings(tmp_path / name)
    assert str(refused.value).startswith(str(tmp_path / name))
    assert len(str(refused.value).splitlines()) == 1


LINES = st.lists(
    st.text(st.sampled_from('a",\t{}[]:\\\r\n\x00é猫\ud83d'), max_size=12)
    | st.sampled_from(
        ["good.png,a good row", 'good.png,"', '"good.png"', '{"image": "good.png", "caption": "c"}']
    ),
    max_size=6,
)


@given(st.sampled_from([".csv", ".tsv", ".jsonl"]), LINES)
@example(".csv", ['good.png,"', "", '"'])
def test_any_lines(ending: str, lines: list[str]) -> None:
    content = "\n".join(["image,caption".replace(",", "\t" if ending == ".tsv" else ","), *lines])
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "good.png").write_bytes(b"picture")
        path = Path(folder) / f"list{ending}"
        path.write_bytes(content.encode(errors="surrogatepass"))
        check_records(list(read_source(path)))


@given(st.binary(max_size=600), st.integers(0, 1500), st.integers(0, 1500))
def test_any_archive(content: bytes, start: int, end: int) -> None:
    whole = hostile.tar({"a.png": b"picture", "a.txt": b"text"})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "list.tar"
        path.write_bytes(whole[:start] + content + whole[end:])
        check_records(list(read_source(path)))


@given(st.binary(max_size=200), st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "TIFF"]), st.floats(0, 1))
def test_any_picture(content: bytes, kind: str, place: float) -> None:
    whole = encoded(Image.new("RGB", (9, 9), "red"), kind)
    at = int(place * len(whole))
    changed = whole[:at] + content + whole[at + len(content) :]
    read_header(changed)
    try:
        decode(changed)
    except UnreadablePictureError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017


ENTRY = st.tuples(
    st.sampled_from([0x0131, 0x0128, 0x011A, 0x8769, 0x8825, 0x9204, 0x0112, 0x02BC])
    | st.integers(0, 0xFFFF),
    st.integers(0, 14),
    st.sampled_from([0, 1, 2, 2**31, 2**32 - 1]),
    st.binary(max_size=12),
)


@given(st.lists(ENTRY, max_size=4))
def test_any_exif_block_beside_good_pixels(entries: list[tuple[int, int, int, bytes]]) -> None:
    image = Image.new("RGB", (9, 5), "red")
    found = decode(jpeg_with_exif(image, exif_block(*entries)))
    assert sorted(found.size) == [5, 9]


@given(
    st.binary(max_size=100)
    | st.text(st.sampled_from("resolution=64validatn.[]{}'\"\n# "), max_size=60).map(str.encode)
)
def test_any_settings(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "import.toml"
        path.write_bytes(content)
        try:
            load_import_settings(path)
        except InvalidInputError as error:
            assert len(str(error).splitlines()) == 1  # noqa: PT017


def test_members_that_claim_to_be_huge(tmp_path: Path) -> None:
    member = tarfile.TarInfo("huge.png")
    member.size = 2**40
    (tmp_path / "huge.tar").write_bytes(member.tobuf() + bytes(2 * tarfile.BLOCKSIZE))
    check_records(list(read_source(tmp_path / "huge.tar")))
