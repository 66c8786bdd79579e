"""Pictures in a terminal: two pixels a character, the upper half block in one colour on the other."""

from PIL import Image
from rich.color import Color
from rich.console import Console
from rich.segment import Segment, Segments
from rich.style import Style

UPPER_HALF_BLOCK = "\u2580"


def preview(image: Image.Image, console: Console) -> Segments:
    """Returns a picture as text, as large as fits into the terminal and no larger than the picture."""
    width = min(console.width, image.width)
    height = round(image.height * width / image.width)
    most = 2 * max(console.height - 4, 8)
    if height > most:
        width, height = max(1, round(width * most / height)), most
    height += height % 2
    small = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    segments: list[Segment] = []
    for y in range(0, height, 2):
        for x in range(width):
            upper, lower = (Color.from_rgb(*small.getpixel((x, y + below))) for below in (0, 1))  # type: ignore[misc]
            segments.append(Segment(UPPER_HALF_BLOCK, Style(color=upper, bgcolor=lower)))
        segments.append(Segment.line())
    return Segments(segments)
