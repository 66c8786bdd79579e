"""Pictures in a terminal: each character shows two pixels, as an upper half block in two colours."""

from PIL import Image
from rich.color import Color
from rich.console import Console
from rich.segment import Segment, Segments
from rich.style import Style

UPPER_HALF_BLOCK = "\u2580"


def shows_pictures(console: Console) -> bool:
    """Returns whether it is a terminal with colours and with the character; without colours all blocks are equal."""
    if not console.is_terminal or console.no_color or console.color_system is None:
        return False
    try:
        UPPER_HALF_BLOCK.encode(console.encoding)
    except (LookupError, UnicodeError):
        return False
    return True


def preview(image: Image.Image, console: Console) -> Segments:
    """Returns a picture as text that fits the terminal; it is never enlarged."""
    width = min(console.width, image.width)
    height = round(image.height * width / image.width)
    max_height = 2 * max(console.height - 4, 8)
    if height > max_height:
        width, height = max(1, round(width * max_height / height)), max_height
    height += height % 2
    small = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    segments: list[Segment] = []
    for y in range(0, height, 2):
        for x in range(width):
            upper, lower = (Color.from_rgb(*small.getpixel((x, y + below))) for below in (0, 1))  # type: ignore[misc]
            segments.append(Segment(UPPER_HALF_BLOCK, Style(color=upper, bgcolor=lower)))
        segments.append(Segment.line())
    return Segments(segments)
