"""Pictures from outside: what is refused by the header, what ends a process, and what ordinary files become."""

import asyncio
import io
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness.hostile_pictures import png, scan_bomb
from harness.waiting import wait_until
from smalti.errors import InvalidInputError
from smalti.picture_files import PictureReader, check_header
from smalti.picture_files.header import MAX_SCANS, read_header
from smalti.pictures import read_image


def file(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(width: int = 48, height: int = 32) -> Image.Image:
    rows = np.linspace(0, 255, width * height * 3).reshape(height, width, 3)
    return Image.fromarray(rows.astype(np.uint8))


@pytest.fixture
def made() -> Iterator[PictureReader]:
    one = PictureReader(processes=1, processor_seconds=1, seconds=60.0, memory=2**29)
    try:
        yield one
    finally:
        one.close()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"exif": b"Exif\x00\x00"}),
    ],
)
def test_header_of_ordinary_files(kind: str, options: dict[str, Any]) -> None:
    content = file(gradient(), kind, **options)
    header = read_header(content)
    assert header is not None
    assert (header.width, header.height) == (48, 32)
    assert header.end in (None, len(content))
    assert (header.scans > 1) is ("progressive" in options)
    check_header(content, "image")
    with Image.open(io.BytesIO(content)) as plain:
        assert read_image(content, "image").tobytes() == plain.convert("RGB").tobytes()


@pytest.mark.parametrize("cut", [0, 1, 3, 11, 20, 25, 29])
def test_files_that_are_cut_off_are_refused(cut: int) -> None:
    for kind in ("PNG", "JPEG", "WEBP"):
        with pytest.raises(InvalidInputError, match=r"^image: (must be a picture|cannot be read)"):
            read_image(file(gradient(), kind)[:cut], "image")


def test_scans_are_counted_before_anything_is_decoded() -> None:
    for scans in (1000, 200_000):
        bomb = scan_bomb(scans)
        began = time.process_time()
        with pytest.raises(
            InvalidInputError, match=r"^image: has more than 64 scans; .*baseline JPEG"
        ) as caught:
            check_header(bomb, "image")
        assert time.process_time() - began < 0.1
        assert "\n" not in str(caught.value)
    # Bytes between the markers, which decoders skip, hide nothing.
    hidden = scan_bomb(1000).replace(b"\xff\xda\x00\x08", b"xx\xff\xff\xda\x00\x08")
    header = read_header(hidden)
    assert header
    assert header.scans > MAX_SCANS
    check_header(scan_bomb(MAX_SCANS - 1), "image")


def test_processor_time_is_limited_and_the_next_picture_gets_a_new_process(made: PictureReader) -> None:
    good = file(gradient(), "PNG")
    made.read(good, "image")
    with pytest.raises(InvalidInputError, match=r"^images\[3\]: takes too long to read; save it again as"):
        made.read(scan_bomb(20_000), "images[3]")
    assert made.read(good, "image").content == gradient().tobytes()


def test_time_is_limited() -> None:
    impatient = PictureReader(processes=1, processor_seconds=60, seconds=0.5)
    try:
        with pytest.raises(InvalidInputError, match=r"^image: takes too long to read"):
            impatient.read(scan_bomb(50_000), "image")
    finally:
        impatient.close()


def test_memory_is_limited(made: PictureReader) -> None:
    bomb = png(16_000, 16_000, bytes(16_001) * 16_000)
    with pytest.raises(InvalidInputError, match=r"^image: (needs too much memory|cannot be read)"):
        made.read(bomb, "image", max_side=2**15)
    assert made.read(file(gradient(), "PNG"), "image").width == 48
    with pytest.raises(InvalidInputError, match=r"^image: has 16000 x 16000 pixels; at most 4096 x 4096"):
        read_image(bomb, "image")


def test_call_that_is_given_up_frees_its_place(made: PictureReader) -> None:
    patient = PictureReader(processes=1, processor_seconds=300, seconds=300.0)

    async def run() -> float:
        bombs = [asyncio.create_task(patient.receive(scan_bomb(100_000), "image")) for _ in range(3)]
        await asyncio.sleep(1.0)
        for bomb in bombs:
            bomb.cancel()
        await asyncio.gather(*bombs, return_exceptions=True)
        began = time.monotonic()
        found = await patient.receive(file(gradient(), "PNG"), "image")
        assert found.content == gradient().tobytes()
        return time.monotonic() - began

    try:
        assert asyncio.run(run()) < 30
    finally:
        patient.close()


def test_killed_process_is_replaced(made: PictureReader) -> None:
    good = file(gradient(), "PNG")
    made.read(good, "image")
    (child,) = made._children
    child.process.kill()
    wait_until(lambda: child.process.poll() is not None)
    assert made.read(good, "image").width == 48


def test_unusual_files_become_what_they_show() -> None:
    grey = Image.fromarray(np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16))
    assert (
        np.asarray(read_image(file(grey, "PNG"), "image"))[..., 0].tolist()
        == (np.asarray(grey) >> 8).tolist()
    )
    cmyk = file(gradient().convert("CMYK"), "JPEG", quality=100)
    assert np.abs(np.asarray(read_image(cmyk, "image"), int) - np.asarray(gradient(), int)).mean() < 30
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for kind in ("PNG", "WEBP"):
        animated = file(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
        assert read_image(animated, "image").getpixel((0, 0)) == (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert read_image(file(gradient(), "JPEG", exif=exif), "image").size == (32, 48)


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xd8" + b"\xff" * 8_000_000 + b"\x00",
        b"\xff\xd8" + b"\xff\x01" * 4_000_000,
        b"\xff\xd8" + b"\xff\xe0\x00\x02" * 2_000_000,
        png(8, 8, b"")[:33] + (b"\x00\x00\x00\x00tEXt" + b"\x00" * 4) * 600_000,
    ],
)
def test_header_of_any_file_is_checked_quickly(content: bytes) -> None:
    began = time.process_time()
    with pytest.raises(InvalidInputError, match=r"^image: (must be a picture|has more than 20000 parts)"):
        check_header(content, "image")
    assert time.process_time() - began < 0.5
