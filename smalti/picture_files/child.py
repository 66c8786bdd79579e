"""Decodes pictures within limits: `python -I -S child.py FOLDER MEMORY SECONDS`, where FOLDER has Pillow.

A script of its own that imports nothing of Smalti: it starts quickly, has neither the settings nor the secrets of the
service, and opens no files. Each request and each answer is a line of JSON and, after it, as many bytes as the line's
`bytes` says. It ends when its input ends.
"""

import contextlib
import ctypes
import io
import json
import re
import resource
import signal
import sys
import warnings
from typing import Any

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
CHUNK = "smalti"
MAX_TEXT = 2**17
EIGHT_BITS = frozenset(
    {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "HSV"}
)
"""The modes that Pillow itself converts rightly; see `flat` for the others."""
SAVE_AGAIN = "save it again with 8 or 16 bits per channel"


def main() -> None:
    """Answers requests until there are no more."""
    folder, memory, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    sys.path.append(folder)
    # Imported here, where all files may still be opened; Pillow would import all formats for the first WebP file.
    from PIL import Image, JpegImagePlugin, MpoImagePlugin, PngImagePlugin, WebPImagePlugin  # noqa: F401

    warnings.simplefilter("ignore")
    Image.MAX_IMAGE_PIXELS = None  # The limits are those of the request.
    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = MAX_TEXT
    confine(memory)
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    while line := source.readline():
        request = json.loads(line)
        content = source.read(request["bytes"])
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(used.ru_utime + used.ru_stime) + 1 + seconds
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        try:
            answer, payload = decode(content, request)
        except Exception as error:
            # Without the address of an object, which no two processes have in common.
            text = re.sub(r"<[^<>]* at 0x[0-9a-f]+>", "it", str(error))
            answer, payload = {"error": type(error).__name__, "text": text}, b""
        sink.write(json.dumps({**answer, "bytes": len(payload)}).encode() + b"\n")
        sink.write(payload)
        sink.flush()


def confine(memory: int) -> None:
    """Gives up what decoding does not need; what a system does not have is left out."""
    limits = {
        "RLIMIT_AS": memory,
        "RLIMIT_FSIZE": 0,
        "RLIMIT_CORE": 0,
        "RLIMIT_NPROC": 0,
        "RLIMIT_NOFILE": 16,
    }
    for name, limit in limits.items():
        with contextlib.suppress(AttributeError, OSError, ValueError):
            resource.setrlimit(getattr(resource, name), (limit, limit))
    with contextlib.suppress(AttributeError, OSError):
        call = ctypes.CDLL(None).prctl
        call(PR_SET_PDEATHSIG, signal.SIGKILL)
        call(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def decode(content: bytes, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Returns the description of the result, and its bytes."""
    from PIL import Image, ImageOps
    from PIL.PngImagePlugin import PngImageFile

    if "AVIF" in request["formats"]:
        from PIL import AvifImagePlugin

        AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # More threads than one may not be started here.
    if "TIFF" in request["formats"]:
        from PIL import TiffImagePlugin

        # It would write the metadata anew, which fails if they are damaged.
        TiffImagePlugin.TiffImageFile.load_end = lambda self: None  # type: ignore[method-assign]
    wants_text = request["want"] == "text"
    pixels, exif = without_metadata(content, CHUNK.encode() if wants_text else None)
    with Image.open(io.BytesIO(pixels), formats=request["formats"]) as opened:
        width, height = opened.size
        if max(width, height) > request["max_side"]:
            raise ValueError(
                f"has {width} x {height} pixels; at most {request['max_side']} on a side are allowed"
            )
        if width * height > request["max_pixels"]:
            raise ValueError(
                f"has {width} x {height} pixels; at most {request['max_pixels']} in all are allowed"
            )
        opened.load()
        upright = turned(opened, exif)
        size = {"width": upright.width, "height": upright.height}
        side: Any = request.get("side")
        match request["want"]:
            case "size":
                return size, b""
            case "tiles":
                return size, transparent_tiles(upright, side)
            case "text":
                text = opened.text.get(CHUNK) if isinstance(opened, PngImageFile) else None
                return {**size, "missing": text is None}, (text or "").encode()
            case _:
                image = flat(upright)
                if side is not None:
                    image = ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS)
                return {"width": image.width, "height": image.height}, image.tobytes()


def without_metadata(content: bytes, text: bytes | None) -> tuple[bytes, bytes]:
    """Returns a PNG or JPEG file without what its pixels do not need, and its EXIF block.

    Metadata are of any program and often damaged; what is left out can do no harm. Other formats stay as they are.

    Args:
        content: the file.
        text: the key of a text of a PNG that stays; None for no text.
    """
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return png_without_metadata(content, text)
    if content.startswith(b"\xff\xd8\xff"):
        return jpeg_without_metadata(content)
    return content, b""


def png_without_metadata(content: bytes, text: bytes | None) -> tuple[bytes, bytes]:
    """See `without_metadata`."""
    kept, exif, position = [content[:8]], b"", 8
    while position + 8 <= len(content):
        length, kind = (
            int.from_bytes(content[position : position + 4], "big"),
            content[position + 4 : position + 8],
        )
        data, end = content[position + 8 : position + 8 + length], position + 12 + length
        if kind == b"eXIf":
            exif = exif or data
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            if text is not None and data.startswith(text + b"\0") and length <= MAX_TEXT:
                kept.append(content[position:end])
        # Chunks that decoders must know have a capital.
        elif kind[:1].isupper() or kind == b"tRNS":
            kept.append(content[position:end])
        position = end
        if kind == b"IEND":
            break
    return b"".join(kept), exif


def jpeg_without_metadata(content: bytes) -> tuple[bytes, bytes]:
    """See `without_metadata`; the segments before the first scan are looked at."""
    kept, exif, position = [content[:2]], b"", 2
    while content[position : position + 1] == b"\xff" and position + 4 <= len(content):
        marker = content[position + 1]
        if marker == 0xFF:  # A fill byte.
            position += 1
            continue
        if marker == 0xDA or marker == 0x01 or 0xD0 <= marker <= 0xD9:
            break
        end = position + 2 + int.from_bytes(content[position + 2 : position + 4], "big")
        segment = content[position + 4 : end]
        if marker == 0xE1 and segment.startswith(b"Exif\0"):
            exif = exif or segment
        # JFIF and Adobe say how colours are stored.
        if not (0xE1 <= marker <= 0xEF or marker == 0xFE) or marker == 0xEE:
            kept.append(content[position:end])
        position = end
    return b"".join([*kept, content[position:]]), exif


def turned(image: Any, block: bytes) -> Any:
    """Returns a picture upright, as its EXIF data or its tags say; what cannot be read says nothing."""
    from PIL import Image

    image._size = image.im.size  # Of a TIFF that is turned, it is that of the upright picture.
    orientation = None
    with contextlib.suppress(Exception):  # Whatever a damaged block raises.
        tags = getattr(image, "tag_v2", None)
        if tags is None:
            tags = Image.Exif()
            tags.load(block or image.info.get("exif", b""))
        orientation = tags.get(0x0112)
    turns = Image.Transpose
    ways = {
        2: turns.FLIP_LEFT_RIGHT, 3: turns.ROTATE_180, 4: turns.FLIP_TOP_BOTTOM, 5: turns.TRANSPOSE,
        6: turns.ROTATE_270, 7: turns.TRANSVERSE, 8: turns.ROTATE_90,
    }  # fmt: skip
    way = ways.get(orientation) if isinstance(orientation, int) else None
    return image if way is None else image.transpose(way)


def flat(image: Any) -> Any:
    """Returns a picture of any mode in RGB, with white in place of transparency.

    Raises:
        ValueError: nobody can say which colours the numbers of this mode mean.
    """
    from PIL import Image

    image = in_eight_bits(image)
    if image.mode == "LAB":
        from PIL import ImageCms

        ways = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, *ways, outputMode="RGB")
        assert converted
        return converted
    if image.mode not in EIGHT_BITS:
        raise ValueError(f"has the mode {image.mode}, which is not known; {SAVE_AGAIN}")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def in_eight_bits(image: Any) -> Any:
    """Returns a picture with more bits per channel scaled to eight by the range of its numbers; others as they are."""
    if not (image.mode.startswith("I") or image.mode == "F"):
        return image
    tags = getattr(image, "tag_v2", {})
    darkest, brightest = declared_range(tags)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        # Twelve bits are stored as sixteen.
        bits = tags.get(258, (16,))[0] if tags else 16
        grey = image.convert("I")
        table = [min(value >> (bits - 8), 255) for value in range(2**16)]
        flat = grey.point(table[::-1] if tags.get(262) == 0 and bits == 16 else table, "L")
        key = image.info.get("transparency")
        if isinstance(key, int):
            flat.info.pop("transparency", None)
            flat.putalpha(grey.point([0 if value == key else 255 for value in range(2**16)], "L"))
        return flat
    if brightest is None and image.mode == "F":
        low, high = image.getextrema()
        if low >= 0 and high <= 1:
            darkest, brightest = 0.0, 1.0
    if darkest is None or brightest is None or not brightest > darkest:
        kind = "floating-point numbers beyond 0 to 1" if image.mode == "F" else "signed or 32-bit integers"
        raise ValueError(f"has {kind}, and does not say their range; {SAVE_AGAIN}")
    factor, start = 255 / (brightest - darkest), darkest
    scaled = image.convert("F").point(lambda value: value * factor + -start * factor + 0.5)
    return scaled.convert("L")


def declared_range(tags: Any) -> tuple[float | None, float | None]:
    """Returns the smallest and the largest number that a TIFF says it has."""
    with contextlib.suppress(Exception):
        for low, high in ((340, 341), (280, 281)):
            ends = [tags.get(tag) for tag in (low, high)]
            darkest, brightest = (float(end[0] if isinstance(end, tuple) else end) for end in ends)
            if darkest < brightest:
                return darkest, brightest
    return None, None


def transparent_tiles(image: Any, side: int) -> bytes:
    """Returns a byte for each tile of the centred square, 1 if one of its pixels is fully transparent."""
    from PIL import Image, ImageOps

    alpha = image.convert("RGBA").getchannel("A")
    square = min(image.size)
    transparent = alpha.point([1] + [0] * 255).convert("F")
    cropped = ImageOps.fit(transparent, (square, square), Image.Resampling.BOX)
    # The averages of the pixels of a tile: more than 0 if one of them is transparent.
    tiles = cropped.resize((side, side), Image.Resampling.BOX)
    averages: list[Any] = [tiles.getpixel((column, row)) for row in range(side) for column in range(side)]
    return bytes(average > 0 for average in averages)


if __name__ == "__main__":
    main()
