"""Decodes pictures within limits: `python -I -S child.py FOLDER MEMORY SECONDS`, where FOLDER has Pillow.

A script of its own that imports nothing of Smalti: it starts quickly, has neither the settings nor the secrets of the
service, and opens no files. Each request and each answer is a line of JSON and, after it, as many bytes as the line's
`bytes` says. It ends when its input ends.
"""

import contextlib
import ctypes
import io
import json
import resource
import signal
import sys
import warnings
from typing import Any

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
CHUNK = "smalti"
MAX_TEXT = 2**17


def main() -> None:
    """Answers requests until there are no more."""
    folder, memory, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    sys.path.append(folder)
    # Imported here, where all files may still be opened; Pillow would import all formats for the first WebP file.
    from PIL import Image, JpegImagePlugin, MpoImagePlugin, PngImagePlugin, WebPImagePlugin  # noqa: F401

    warnings.simplefilter("ignore")
    warnings.simplefilter("error", Image.DecompressionBombWarning)
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
            answer, payload = {"error": type(error).__name__, "text": str(error)}, b""
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

    with Image.open(io.BytesIO(content), formats=request["formats"]) as opened:
        if max(opened.size) > request["max_side"]:
            raise ValueError(f"has {opened.width} x {opened.height} pixels, which is too large")
        upright = ImageOps.exif_transpose(opened)
        size = {"width": upright.width, "height": upright.height}
        side: Any = request.get("side")
        match request["want"]:
            case "size":
                upright.load()
                return size, b""
            case "tiles":
                return size, transparent_tiles(upright, side)
            case "text":
                upright.load()
                text = opened.text.get(CHUNK) if isinstance(opened, PngImageFile) else None
                return {**size, "missing": text is None}, (text or "").encode()
            case _:
                image = flat(upright)
                if side is not None:
                    image = ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS)
                return {"width": image.width, "height": image.height}, image.tobytes()


def flat(image: Any) -> Any:
    """Returns a picture of any mode in RGB, with white in place of transparency."""
    from PIL import Image

    if image.mode.startswith("I"):  # 16 bits per pixel, of which Pillow would keep the lower eight.
        image = image.convert("I").point([value >> 8 for value in range(2**16)], "L")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


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
