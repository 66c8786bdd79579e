"""Pictures and their files."""

import errno
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smalti.errors import InvalidInputError
from smalti.parameters import SamplingParameters
from smalti.pictures import (
    Drawing,
    grid,
    load_drawing,
    masked_tiles,
    plain_png_bytes,
    png_bytes,
    save_png,
    slug,
)

DRAWING = Drawing(
    prompt="an “avocado” armchair 🥑", seed=2**63 - 1, model="tiny", revision="sha256:00",
    candidates=16, candidate=4,
    sampling=SamplingParameters(guidance_scale=3.5, top_p=0.1), score=21.5,
)  # fmt: skip


def picture(value: int = 7) -> Image.Image:
    return Image.fromarray(np.full((8, 8, 3), value, np.uint8))


def test_png_holds_its_drawing_and_its_pixels(tmp_path: Path) -> None:
    path = save_png(tmp_path, "a", png_bytes(picture(), DRAWING))
    assert load_drawing(path) == DRAWING
    with Image.open(path) as image:
        assert np.asarray(image).tolist() == np.asarray(picture()).tolist()


def test_file_never_replaces_another_picture(tmp_path: Path) -> None:
    first = save_png(tmp_path, "a", b"one")
    assert save_png(tmp_path, "a", b"one") == first
    assert save_png(tmp_path, "a", b"two").name == "a-2.png"
    assert save_png(tmp_path, "a", b"three").name == "a-3.png"
    assert save_png(tmp_path, "a", b"two").name == "a-2.png"
    assert first.read_bytes() == b"one"
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("An Avocado  Armchair!", "an-avocado-armchair"),
        ("../../etc/passwd", "etc-passwd"),
        ("🥑", "picture"),
        ("word " * 40, "-".join(["word"] * 12)),
        ("x" * 500, "x" * 60),
        ("日本", "日本"),
        ("पूर्ण चंद्रमा", "पूर्ण-चंद्रमा"),
        ("snake_case, cafés", "snake_case-cafés"),
    ],
)
def test_slug_is_a_safe_file_name(prompt: str, name: str) -> None:
    assert slug(prompt) == name


def test_slug_of_wide_letters_fits_a_file_name() -> None:
    assert len(slug("日" * 500).encode()) <= 60


@pytest.mark.parametrize(("count", "size"), [(1, (8, 8)), (2, (18, 8)), (9, (28, 28)), (10, (38, 28))])
def test_grid_is_nearly_square(count: int, size: tuple[int, int]) -> None:
    sheet = grid([picture(index) for index in range(count)])
    assert sheet.size == size
    last = count - 1
    columns = (size[0] + 2) // 10
    assert sheet.getpixel((last % columns * 10, last // columns * 10)) == (last, last, last)


def test_files_without_a_drawing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no such file"):
        load_drawing(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(InvalidInputError, match=r"text\.png: must be a picture in PNG format"):
        load_drawing(tmp_path / "text.png")
    picture().save(tmp_path / "plain.png")
    with pytest.raises(InvalidInputError, match="does not record how it was made"):
        load_drawing(tmp_path / "plain.png")
    damaged = png_bytes(picture(), DRAWING.model_copy(update={"seed": -1}))
    (tmp_path / "damaged.png").write_bytes(damaged)
    with pytest.raises(InvalidInputError, match="its record is damaged: seed: "):
        load_drawing(tmp_path / "damaged.png")
    for name, value in {"candidate": 2**40, "n": 0, "candidates": -1}.items():
        (tmp_path / "odd.png").write_bytes(png_bytes(picture(), DRAWING.model_copy(update={name: value})))
        with pytest.raises(InvalidInputError, match=f"^like: .*odd.png: its record is damaged: {name}: "):
            load_drawing(tmp_path / "odd.png")


def mask(size: tuple[int, int], *holes: tuple[int, int, int, int], mode: str = "RGBA") -> bytes:
    """Returns the file of an opaque mask with transparent rectangles (left, top, right, bottom)."""
    image = Image.new("RGBA", size, (0, 0, 0, 255))
    for hole in holes:
        image.paste((255, 255, 255, 0), hole)
    return plain_png_bytes(image.convert(mode))


@pytest.mark.parametrize(
    ("size", "hole", "tiles"),
    [
        ((32, 32), (8, 8, 16, 24), [5, 9]),
        ((32, 32), (7, 8, 16, 24), [4, 5, 8, 9]),  # One column of pixels of two more tiles.
        ((32, 32), (31, 31, 32, 32), [15]),
        ((30, 30), (0, 0, 9, 1), [0, 1]),  # A tile has 7.5 pixels.
        ((2, 2), (1, 0, 2, 1), [2, 3, 6, 7]),  # A pixel has four tiles.
        ((48, 32), (0, 0, 16, 32), [0, 4, 8, 12]),  # A third of it is outside the centred square.
    ],
)
def test_mask_covers_tiles_with_a_transparent_pixel(
    size: tuple[int, int], hole: tuple[int, int, int, int], tiles: list[int]
) -> None:
    for mode in ("RGBA", "LA"):
        assert masked_tiles(mask(size, hole, mode=mode), [size], 4, "mask") == tiles


def test_mask_is_cropped_like_the_picture() -> None:
    with pytest.raises(InvalidInputError, match="no fully transparent pixel"):
        masked_tiles(mask((48, 32), (0, 0, 8, 32)), [(48, 32)], 4, "mask")


def test_masks_that_cannot_be_used_are_refused() -> None:
    whole = (32, 32)
    half_transparent = plain_png_bytes(Image.new("RGBA", whole, (0, 0, 0, 1)))
    opaque = plain_png_bytes(Image.new("RGB", whole))
    for content, problem in (
        (b"", "must be a picture in PNG, JPEG or WebP format"),
        (
            mask((16, 32), (0, 0, 8, 8)),
            "has 16 x 32 pixels; it must be as large as the picture: 32 x 32 or 64 x 64",
        ),
        (
            half_transparent,
            "has no fully transparent pixel; make the part transparent that is to be drawn anew",
        ),
        (opaque, "has no fully transparent pixel; make the part transparent that is to be drawn anew"),
        (mask(whole, (0, 0, 32, 32)), "covers every tile of the picture; leave a part opaque, which is kept"),
    ):
        with pytest.raises(InvalidInputError) as refused:
            masked_tiles(content, [whole, (64, 64)], 4, "mask")
        assert str(refused.value) == f"mask: {problem}"


def test_of_many_that_write_one_name_none_loses_its_picture(tmp_path: Path) -> None:
    for _ in range(10):
        folder, gate = tmp_path / str(_), threading.Barrier(8)

        def write(number: int, folder: Path = folder, gate: threading.Barrier = gate) -> Path:
            gate.wait()
            return save_png(folder, "a", b"picture %d" % number * 1000)

        with ThreadPoolExecutor(8) as threads:
            written = list(threads.map(write, range(8)))
        assert [path.read_bytes()[:9] for path in written] == [b"picture %d" % number for number in range(8)]
        assert len(list(folder.iterdir())) == 8


def test_names_that_are_taken_by_other_things(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    (tmp_path / "a-2.png").symlink_to(tmp_path / "nowhere")
    assert save_png(tmp_path, "a", b"one").name == "a-3.png"
    assert not (tmp_path / "nowhere").exists()


def test_file_systems_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    assert [save_png(tmp_path, "a", content).name for content in (b"1", b"2", b"1")] == [
        "a.png",
        "a-2.png",
        "a.png",
    ]
    assert len(list(tmp_path.iterdir())) == 2
