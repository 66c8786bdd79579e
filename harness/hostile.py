"""Small hostile files, made anew each time: `python -m harness.hostile FOLDER` writes them to look at.

Each is small; what it claims to be need not be. Tests feed them to every reader of foreign files.
"""

import io
import json
import sys
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from harness.captioned_pictures import encoded
from harness.hostile_pictures import (
    exif_block,
    jpeg_with_exif,
    png,
    png_with_chunks,
    scan_bomb,
)


def pictures() -> dict[str, bytes]:
    """Returns picture files that are damaged, lie about themselves, or are unusual."""
    image = Image.fromarray(np.arange(96 * 96 * 3, dtype=np.uint8).reshape(96, 96, 3))
    plain = {
        kind: encoded(image, kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
    }
    cut = {f"cut.{kind.lower()}": content[: len(content) // 2] for kind, content in plain.items()}
    empty = {f"empty.{kind.lower()}": b"" for kind in plain}
    named = {f"really-a-{kind.lower()}.png": content for kind, content in plain.items()}
    bomb = zlib.compress(bytes(2_000_000))
    return cut | empty | named | {
        "page.jpg": b"<!doctype html><title>404</title>",
        "scans.jpg": scan_bomb(2000, side=512),
        "giant.png": png(60_000, 60_000, b""),
        "wide.png": png(2**31 - 1, 1, b"\0"),
        "none.png": png(0, 0, b""),
        "sixteen.png": encoded(Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64) * 16), "PNG"),
        "signed.tif": encoded(Image.fromarray(np.arange(4096, dtype=np.int32).reshape(64, 64)), "TIFF"),
        "float.tif": encoded(Image.fromarray(np.full((64, 64), np.nan, np.float32)), "TIFF"),
        "texts.png": png_with_chunks(image, (b"zTXt", b"a\0\0" + bomb), (b"iTXt", b"smalti\0\1\0\0\0" + bomb)),
        "profile.png": png_with_chunks(image, (b"iCCP", b"a\0\0" + bomb)),
        "exif.png": png_with_chunks(image, (b"eXIf", b"II*\0" + b"\xff" * 8)),
        "exif.jpg": jpeg_with_exif(image, exif_block((0x0131, 5, 1, b"\0" * 8), (0x8769, 4, 1, b"\xff" * 4))),
        "loop.jpg": jpeg_with_exif(image, exif_block((0x8769, 4, 1, b"\x08\0\0\0"))),
        "loop.tif": b"II*\0\x08\0\0\0\0\0\x08\0\0\0",
    }  # fmt: skip


def tables() -> dict[str, bytes]:
    """Returns tables and JSON lines that name `good.png`; each also has a row with the caption "a good row"."""
    csv, lines = b"image,caption\n", b'{"image": "good.png", "caption": "a good row"}\n'
    row, good = b'{"image": "good.png", "caption": ', b"good.png,a good row\n"
    return {
        "unclosed.csv": csv + b'good.png,"never closed\n' + good,
        "unclosed-late.csv": csv + good + b'good.png,"never closed',
        "latin.csv": csv + b"good.png,caf\xe9\n" + good,
        "nul.csv": csv + b"good.png,a\0b\n" + good,
        "long.csv": csv + b"good.png," + b"x" * (3 << 20) + b"\n" + good,
        "ragged.csv": csv + b"good.png\n,,,,\n" + good + b"a,b,c,d\n",
        "mark.csv": b"\xef\xbb\xbf" + csv + good,
        "wide.csv": (csv + good).decode().encode("utf-16"),
        "wide-cut.csv": (csv + good + b"good.png,x\n").decode().encode("utf-16")[:-1],
        "old-mac.csv": (csv + good).replace(b"\n", b"\r"),
        "quotes.csv": csv + b'"good.png","a ""b"" c" d\n' + good + b'"' * 1001 + b"\n",
        "deep.jsonl": row + b"[" * 50_000 + b"]" * 50_000 + b"}\n" + lines,
        "deeper.jsonl": b'{"a":' * 50_000 + b"\n" + lines,
        "half.jsonl": row + b'"\\ud83d"}\n' + row + b'"\\udc31\\ud83d"}\n' + lines,
        "numbers.jsonl": row + b"9" * 5000 + b"}\n" + row + b"1e999}\n" + row + b"NaN}\n" + lines,
        "kinds.jsonl": b'null\n1\n"a"\n[]\n{}\n{"image": [], "caption": {}}\n' + lines,
        "paths.jsonl": b"".join(
            json.dumps({"image": path, "caption": "c"}).encode() + b"\n"
            for path in ("\0", "..", "/", "/dev/zero", "x" * 5000, "a/" * 3000, "\ud800", "")
        )
        + lines,
        "bytes.jsonl": bytes(range(256)).replace(b"\n", b"") + b"\n" + lines,
    }


def archives() -> dict[str, bytes]:
    """Returns tar files; each that is not cut off has a sample with the caption "a good row"."""
    picture = encoded(Image.fromarray(np.full((96, 96, 3), 7, np.uint8)), "PNG")
    good = {"good.png": picture, "good.txt": b"a good row"}
    mac = {f"._{name}": b"Mac OS X" for name in good} | good | {"__MACOSX/._good.png": b"Mac OS X"}
    whole = tar(good)
    return {
        "mac.tar": tar(mac),
        "capitals.tar": tar(
            {name.upper(): content for name, content in good.items()} | {"GOOD.TXT": b"a good row"}
        ),
        "climbing.tar": tar({f"../../{name}": content for name, content in good.items()}),
        "deep.tar": tar({"deep.png": picture, "deep.json": b'{"caption":' + b"[" * 50_000} | good),
        "latin.tar": tar({"latin.png": picture, "latin.txt": b"caf\xe9"} | good),
        "names.tar": tar({"a\nb\udce9.png": picture, "a\nb\udce9.txt": b"named"} | good),
        "links.tar": tar(
            good, ("link.png", tarfile.SYMTYPE, "/etc/passwd"), ("pipe.png", tarfile.FIFOTYPE, "")
        ),
        "cut.tar": whole[:700],
        "changed.tar": whole[:100] + b"\xff" * 60 + whole[160:],
        "zeros.tar": bytes(10_240),
        "text.tar": b"no archive" * 200,
    }


def settings() -> dict[str, bytes]:
    """Returns files of settings that are not TOML, or not what they should be."""
    return {
        "deep.toml": b"resolution = " + b"[" * 50_000,
        "latin.toml": b"resolution = 'caf\xe9'",
        "date.toml": b"resolution = 2026-99-99",
        "number.toml": b"resolution = " + b"9" * 5000,
        "nul.toml": b"resolution = 64\0",
        "kind.toml": b"[resolution]\na = 1",
        "nan.toml": b"validation = nan",
        "inf.toml": b"longest_shape = inf",
    }


def tar(files: Mapping[str, bytes], *others: tuple[str, bytes, str]) -> bytes:
    """Returns a tar file.

    Args:
        files: contents by name.
        others: names, types and targets of links and the like.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name, kind, target in others:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
    return buffer.getvalue()


def main() -> None:
    """Writes all files to a folder."""
    folder = Path(sys.argv[1])
    for make in (pictures, tables, archives, settings):
        inner = folder / make.__name__
        inner.mkdir(parents=True, exist_ok=True)
        for name, content in make().items():
            (inner / name).write_bytes(content)


if __name__ == "__main__":
    main()
