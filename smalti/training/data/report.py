"""The report of a data set: counts per step, everything that was dropped, and contact sheets."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

SHEET_PICTURES = 96
_SHEET_COLUMNS = 12
_GAP = 2
_SHEET_CELL = 128
_SHEET_CAPTION = 120
_FONT_SIZE, _LETTER_WIDTH, _CAPTION_LINES, _CAPTION_HEIGHT = 9, 5, 3, 32
_NAMED_IN_MARKDOWN = 20


@dataclass
class Report:
    """The report of a data set, filled while the data set is made."""

    title: str
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    """Counts of each step, in the order of the steps."""
    problems: list[tuple[str, str]] = field(default_factory=list)
    """Name and reason of everything that was dropped."""
    left_out: dict[str, tuple[int, str]] = field(default_factory=dict)
    """What was taken out of captions: how many times by kind, with the first example."""
    sheets: dict[str, Sequence[str]] = field(default_factory=dict)
    """Captions of the pictures of each contact sheet, row by row."""

    def step(self, name: str) -> Counter[str]:
        """Returns the counts of a step, which is added if it is new."""
        return self.counts.setdefault(name, Counter())

    def drop(self, step: str, name: str, reason: str, detail: str = "") -> None:
        """Counts something that is dropped, and adds it to the problems."""
        self.step(step)[f"dropped: {reason}"] += 1
        self.problems.append((name, f"{reason} ({detail})" if detail else reason))

    def leave_out(self, kind: str, example: str) -> None:
        """Counts something that is taken out of a caption."""
        count, first = self.left_out.get(kind, (0, example))
        self.left_out[kind] = (count + 1, first)

    def add_sheet(
        self,
        folder: Path,
        name: str,
        pictures: Sequence[UInt8[np.ndarray, "height width 3"]],
        captions: Sequence[str],
    ) -> None:
        """Writes a contact sheet to `folder/sheets` and adds its captions to the report."""
        path = folder / "sheets" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        contact_sheet(pictures, captions=captions).save(path)
        self.sheets[name] = list(captions)

    def write(self, folder: Path) -> None:
        """Writes `report.json` and `report.md`. They name no time or place, so the same input gives the same bytes."""
        content: dict[str, Any] = {
            "title": self.title,
            "counts": {step: dict(sorted(counts.items())) for step, counts in self.counts.items()},
            "problems": [{"name": name, "reason": reason} for name, reason in self.problems],
        }
        if self.left_out:
            content["left_out"] = {
                kind: {"count": count, "example": example}
                for kind, (count, example) in sorted(self.left_out.items())
            }
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (folder / "report.json").write_text(text, "utf-8")
        (folder / "report.md").write_text(self.markdown(), "utf-8")

    def markdown(self) -> str:
        """Returns the report as Markdown."""
        lines = [f"# {self.title}", "", "| step | what | count |", "|---|---|---|"]
        for step, counts in self.counts.items():
            lines += [f"| {step} | {what} | {count:,} |" for what, count in sorted(counts.items())]
        if self.left_out:
            lines += ["", "## Taken out of captions", ""]
            lines += [
                f"* {kind}: {count:,}, such as {_plain(example)}"
                for kind, (count, example) in sorted(self.left_out.items())
            ]
        if self.problems:
            lines += ["", "## Not used", ""]
            lines += [
                f"* {_plain(name)}: {_plain(reason)}" for name, reason in self.problems[:_NAMED_IN_MARKDOWN]
            ]
            if len(self.problems) > _NAMED_IN_MARKDOWN:
                lines.append(f"* and {len(self.problems) - _NAMED_IN_MARKDOWN:,} more in `report.json`")
        for name, captions in self.sheets.items():
            lines += ["", f"## {name}", "", f"![{name}](sheets/{name}.png)", ""]
            lines += [f"{number}. {_plain(caption)}" for number, caption in enumerate(captions, start=1)]
        return "\n".join(lines) + "\n"


def contact_sheet(
    pictures: Sequence[UInt8[np.ndarray, "height width 3"]],
    columns: int = _SHEET_COLUMNS,
    captions: Sequence[str] = (),
) -> Image.Image:
    """Arranges pictures in rows, with their captions below them; pictures larger than 128 pixels are scaled down."""
    images = [Image.fromarray(picture) for picture in pictures]
    for image in images:
        image.thumbnail((_SHEET_CELL, _SHEET_CELL))
    side = max((image.width for image in images), default=1)
    width = (max(side, _SHEET_CAPTION) if captions else side) + _GAP
    height = max((image.height for image in images), default=1) + _GAP + (_CAPTION_HEIGHT if captions else 0)
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (min(columns, max(len(images), 1)) * width, max(rows, 1) * height), "gray")
    write = ImageDraw.Draw(sheet)
    for index, image in enumerate(images):
        left, top = index % columns * width, index // columns * height
        sheet.paste(image, (left, top))
        if captions:
            lines = wrap(captions[index], width // _LETTER_WIDTH)[:_CAPTION_LINES]
            below = top + image.height
            write.multiline_text((left, below), "\n".join(lines), "white", spacing=0, font_size=_FONT_SIZE)
    return sheet


def _plain(text: str) -> str:
    """Returns foreign text as one line, with Markdown escaped."""
    return re.sub(r"([\\`*_\[\]<>|#!])", r"\\\1", " ".join(text.split()))
