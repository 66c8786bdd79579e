"""The results of an evaluation as a page with pictures: `docs/quality.md`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from smalti.errors import InvalidInputError, SmaltiError
from smalti.files import atomic_path, write_atomically
from smalti.foreign_text import load_text
from smalti.parameters import Counts
from smalti.pictures import grid
from smalti.training.evaluation.appearance import Appearance, Compared
from smalti.training.evaluation.goals import goals_table
from smalti.training.evaluation.measuring import Quality, Sheets
from smalti.training.evaluation.questions import PromptKind
from smalti.training.evaluation.scoring import Interval, Selection, Shares
from smalti.training.judge.network import Accuracy

PAGE = "quality.md"
FIGURES = "quality.json"
PICTURES = Path("pictures/quality")
FIRSTS = "first.png"
BEGIN = "<!-- What one sees: written by hand, kept when this page is made again. -->"
END = "<!-- The rest of this page is made by `smalti evaluate`. -->"
NOTHING_SEEN = "Nobody has looked at these pictures yet."

_SIDE = 64
"""Side to which the pictures of a sheet are scaled."""
_COLUMNS = 4
_GAP, _MARGIN, _LABEL = 2, 10, 34
_FONT_SIZE = 11
_COLOURS = 255
KIND_NAMES: dict[PromptKind, str] = {
    "natural": "a thing in its own colours, on white",
    "seen": "a colour, a background or both, in combinations seen in training",
    "held_out_colour": "a colour that training never combines with this thing",
    "held_out_background": "a background that training never combines with this thing",
    "pairs": "two things side by side, in combinations seen in training",
    "relations": "a thing above or in front of another, in combinations seen in training",
    "counts": "one to four of a thing, in numbers seen in training",
    "held_out_pairs": "two things, one of them in a colour or on a background held out for it",
    "held_out_relations": "a thing above or in front of another, held out for one of them",
    "held_out_counts": "a number of a thing that training never shows",
}
_JUDGE_NAMES = {
    "plain": "as composed",
    "tokens": "reconstructed from their tokens",
    "big": "of these, one big thing",
    "usual": "of these, one thing of the usual size",
    "small": "of these, a small thing, or one of two or several",
    "tiny": "of these, a tiny thing",
}


def write_page(out: Path, quality: Quality, sheets: Sheets, earlier: Mapping[str, Any] | None = None) -> Path:
    """Writes the page, its figures as JSON, and its pictures; the section written by hand is kept.

    Args:
        out: folder of the page.
        quality: figures.
        sheets: pictures.
        earlier: figures of an earlier evaluation to compare with, from `load_earlier`.

    Returns:
        the path of the page.

    Raises:
        InvalidInputError: the existing page has lost the marks around the section written by hand.
        SmaltiError: a file cannot be written.
    """
    page = out / PAGE
    seen = observations(page)
    try:
        (out / PICTURES).mkdir(parents=True, exist_ok=True)
        for side, prompts in sheets.prompts.items():
            with atomic_path(out / PICTURES / f"{side}.png") as partial:
                overview(prompts, sheets.pixels[side]).save(partial, "PNG", optimize=True)
        with atomic_path(out / PICTURES / FIRSTS) as partial:
            first_of_each(sheets).save(partial, "PNG", optimize=True)
        write_atomically(out / FIGURES, quality.model_dump_json(indent=1) + "\n")
        write_atomically(page, _page(quality, seen, earlier))
    except OSError as error:
        raise SmaltiError(f"{out}: cannot be written ({error.strerror or error})") from error
    return page


def observations(page: Path) -> str:
    """Returns the section written by hand, between the marks of a page.

    Raises:
        InvalidInputError: a mark is missing, or they are in the wrong order.
    """
    if not page.exists():
        return NOTHING_SEEN
    text = load_text(page, "out")
    _, begin, rest = text.partition(BEGIN)
    seen, end, _ = rest.partition(END)
    if not begin or not end:
        raise InvalidInputError(
            "out",
            f"{page} has lost the marks around the section written by hand; put them back, or move the page away",
        )
    return seen.strip()


def overview(prompts: Sequence[str], pixels: Sequence[UInt8[np.ndarray, "shown side side 3"]]) -> Image.Image:
    """Arranges a grid of pictures for each prompt, under its text; best picture first."""
    grids = [grid([_small(picture) for picture in shown], _GAP) for shown in pixels]
    width, height = grids[0].size[0] + _MARGIN, grids[0].size[1] + _LABEL
    rows = -(-len(grids) // _COLUMNS)
    canvas = Image.new("RGB", (_COLUMNS * width + _MARGIN, rows * height + _MARGIN), (232, 232, 232))
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(_FONT_SIZE)
    for index, (prompt, each) in enumerate(zip(prompts, grids, strict=True)):
        left, top = index % _COLUMNS * width + _MARGIN, index // _COLUMNS * height
        lines = _lines(prompt, font, each.size[0])
        pen.multiline_text((left, top + _LABEL - 3), "\n".join(lines), "black", font, anchor="ld", spacing=1)
        canvas.paste(each, (left, top + _LABEL))
    return _palette(canvas)


def first_of_each(sheets: Sheets) -> Image.Image:
    """Arranges the best picture of each prompt in rows."""
    firsts = [_small(shown[0]) for side in sheets.pixels.values() for shown in side]
    columns = -(-len(firsts) // _COLUMNS)
    canvas = Image.new("RGB", (columns * (_SIDE + _GAP) - _GAP, _COLUMNS * (_SIDE + _GAP) - _GAP), "white")
    for index, picture in enumerate(firsts):
        row, column = divmod(index, columns)
        canvas.paste(picture, (column * (_SIDE + _GAP), row * (_SIDE + _GAP)))
    return _palette(canvas)


def _small(picture: UInt8[np.ndarray, "side side 3"]) -> Image.Image:
    image = Image.fromarray(picture)
    return image.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS) if len(picture) != _SIDE else image


def _palette(image: Image.Image) -> Image.Image:
    """Reduces the colours, which shrinks the files in the repository to a third with hardly a visible change."""
    return image.quantize(_COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)


def _lines(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Breaks a text into at most two lines."""
    first: list[str] = []
    rest = text.split()
    while rest and font.getlength(" ".join([*first, rest[0]])) <= width:
        first.append(rest.pop(0))
    return [line for line in (" ".join(first), " ".join(rest)) if line]


def _page(quality: Quality, seen: str, earlier: Mapping[str, Any] | None) -> str:
    counts, sampling, damaged = quality.counts, quality.sampling, quality.judge["damaged"]
    drawn = sum(kind.prompts for kind in quality.kinds.values())
    open_prompts = f"the {quality.open_prompts} of them with both right and wrong pictures"
    versions = ", ".join(f"{name} {version}" for name, version in quality.versions.items())
    lines = [
        "# Quality",
        "",
        f"What pictures `{quality.model}` makes, and how often they are right. [Evaluation](evaluation.md) explains "
        f"how this is measured; [{FIGURES}]({FIGURES}) has all figures.",
        "",
        "| | |",
        "|---|---|",
        f"| model | `{quality.model}`, {quality.size / 2**20:.1f} MiB |",
        f"| revision | `{quality.revision}` |",
        f"| sampling | guidance scale {sampling.guidance_scale:g}, temperature {sampling.temperature:g}, "
        f"top-k {sampling.top_k}, top-p {sampling.top_p:g}; the best {counts.n} of {counts.candidates} by CLIP |",
        f"| measured | {quality.date}, on {quality.machine} |",
        f"| versions | {versions} |",
        "",
        "## Observations",
        "",
        BEGIN,
        "",
        seen,
        "",
        END,
        "",
        *_goals(quality, earlier),
        "## Sheets",
        "",
        f"For each prompt the best {counts.n} of {counts.candidates} pictures by CLIP, best first, with seed 1; none "
        f"was picked by hand. In brackets: in how many of the {counts.n} the judge finds everything "
        "right.",
        "",
        *_sheet("Combinations seen in training", "seen", quality),
        *_sheet("Combinations held out from training", "held_out", quality),
        "## Pictures that are right",
        "",
        f"Share of the pictures that an independent classifier finds right, in percent, with the 95 % confidence "
        f"interval in brackets. There are {drawn} prompts with {counts.candidates} pictures each; each prompt has its "
        "own seed.",
        "",
    ]
    for kind, result in quality.kinds.items():
        lines += [
            f"### {KIND_NAMES[kind][0].upper()}{KIND_NAMES[kind][1:]}",
            "",
            f"{result.prompts} prompts.",
            "",
            "| pictures | thing | colour | background | number, relation | all four |",
            "|---|---|---|---|---|---|",
            *(_shares_row(name, result.shares[name], quality) for name in result.shares),
            "",
        ]
    lines += [
        "## CLIP's choice",
        "",
        f"Share of the best {counts.n} with all four right, minus that share of all {counts.candidates}, in "
        "percentage points. A random choice would give 0.",
        "",
        "| prompts | difference |",
        "|---|---|",
        *(f"| {KIND_NAMES[kind]} | {_points(result.choice)} |" for kind, result in quality.kinds.items()),
        f"| all {drawn} | {_points(quality.choice)} |",
        *([f"| {open_prompts} | {_points(quality.open_choice)} |"] if quality.open_choice else []),
        "",
        *_appearance(quality.appearance, counts),
        "## The judge",
        "",
        f"Accuracy of the judge itself on {quality.judge['plain'].pictures} real pictures of combinations on which "
        "neither it nor the model was trained, in percent.",
        "",
        "| pictures | thing | colour | background | number | relation | style |",
        "|---|---|---|---|---|---|---|",
        *(
            _accuracy_row(_JUDGE_NAMES[name], quality.judge[name])
            for name in _JUDGE_NAMES
            if name in quality.judge
        ),
        "",
        f"When the same pictures are damaged, the judge says for {100 * damaged.thing:.1f} % that there is no whole "
        f"thing, and takes {100 * damaged.fooled:.1f} % for the thing that they were made from.",
        "",
        "## The image tokenizer",
        "",
        f"{quality.reconstruction.pictures} pictures of held-out combinations and their reconstructions from tokens "
        f"have a PSNR of {quality.reconstruction.psnr:.2f} dB and an SSIM of {quality.reconstruction.ssim:.3f}.",
    ]
    return "\n".join(lines) + "\n"


def _goals(quality: Quality, earlier: Mapping[str, Any] | None) -> list[str]:
    n = quality.counts.n
    before = (
        f' "Before" is `{earlier["model"]}` of revision `{earlier["revision"][:19]}`, measured {earlier["date"]}.'
        if earlier is not None
        else ""
    )
    return [
        "## Goals",
        "",
        f"What the shipped model should reach. Shares, sharpness, wobble and distance are those of the best {n} "
        f"pictures.{before}",
        "",
        *goals_table(quality.model_dump(mode="json"), earlier),
        "",
    ]


def _appearance(looks: Appearance, counts: Counts) -> list[str]:
    n, frechet = counts.n, looks.frechet
    rows = [
        ("sharpness", *_compared(looks.sharpness, 1)),
        ("wobble", *_compared(looks.wobble, 2)),
        ("Fréchet distance", f"{frechet.generated:.1f}", f"{frechet.tokens:.1f}", f"{frechet.real:.1f}"),
        (f"variety among the best {n}", _mean(looks.variety, 2), "", f"{looks.variety_real:.2f}"),
        (f"variety among all {counts.candidates}", _mean(looks.variety_all, 2), "", ""),
        (f"different candidates of {counts.candidates}", _mean(looks.distinct, 1), "", ""),
        *([("copies, in percent", percent(looks.copies), "", "1.0")] if looks.copies else []),
    ]  # fmt: skip
    return [
        "## How the pictures look",
        "",
        f"The best {n} pictures of each prompt, real pictures of the same prompts that passed through the image "
        "tokenizer's tokens, and real pictures as they are. What the tokens lose, the generator cannot draw. The 95 % "
        f"confidence interval is in brackets. A distance is between two sets of {frechet.pictures} pictures; that of "
        "real pictures from other real ones is due to chance.",
        "",
        "| | generated | real, through the tokens | real |",
        "|---|---|---|---|",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]


def _sheet(title: str, side: str, quality: Quality) -> list[str]:
    prompts = [f"{each.prompt} ({each.right})" for each in quality.sheets[side]]
    return [
        f"### {title}",
        "",
        f"![{title}]({(PICTURES / f'{side}.png').as_posix()})",
        "",
        "; ".join(prompts) + ".",
        "",
    ]


def _shares_row(selection: Selection, shares: Shares, quality: Quality) -> str:
    n, of = quality.counts.n, quality.counts.candidates
    names: dict[Selection, str] = {
        "all": f"all {of}", "best": f"the best {n} by CLIP", "first": "the best one by CLIP",
        "worst": f"the worst {of - n} by CLIP",
    }  # fmt: skip
    cells = [shares.thing, shares.colour, shares.background, shares.arrangement, shares.everything]
    return f"| {names[selection]} | " + " | ".join(percent(cell) for cell in cells) + " |"


def _accuracy_row(name: str, right: Accuracy) -> str:
    shares = (right.thing, right.colour, right.background, right.count, right.relation, right.style)
    cells = ["–" if share is None else f"{100 * share:.1f}" for share in shares]
    return f"| {name} ({right.pictures}) | " + " | ".join(cells) + " |"


def percent(share: Interval) -> str:
    """Formats a share with its interval in percent."""
    return f"{100 * share.value:.1f} ({100 * share.low:.0f}–{100 * share.high:.0f})"


def _compared(figure: Compared, digits: int) -> tuple[str, str, str]:
    return _mean(figure.generated, digits), f"{figure.tokens:.{digits}f}", f"{figure.real:.{digits}f}"


def _mean(mean: Interval, digits: int) -> str:
    return f"{mean.value:.{digits}f} ({mean.low:.{digits}f}–{mean.high:.{digits}f})"


def _points(difference: Interval) -> str:
    return f"{100 * difference.value:+.1f} ({100 * difference.low:+.1f} to {100 * difference.high:+.1f})"
