"""Named pictures from pinned packages of pictograms.

Each picture package is one of Iconify's: `icons.json` has the SVG bodies, `chars.json` maps code points to them, and
`info.json` has author and licence. The code points lead to a label in `emojibase-data` and to keywords in `emojilib`.
Pictures that would blur the names (skin tones, flags, clock faces ...) are dropped and counted.
"""

import io
import re
import shutil
import subprocess
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import resvg_py
from jaxtyping import UInt8
from PIL import Image

from smalti.errors import InvalidInputError, SmaltiError
from smalti.foreign_text import parse_json

_MANIFESTS = ("package.json", "package-lock.json", ".npmrc")
_VARIATION_SELECTOR = "FE0F"
_JOINER = "200D"
_COMPONENT_GROUP, _PERSON_GROUP, _SYMBOL_GROUP, _FLAG_GROUP = 2, 1, 8, 9


def install_packages(folder: Path, manifests: Path = Path(__file__).parent) -> Path:
    """Installs the packages of the lock file into `folder`, unless exactly these are installed there.

    Returns:
        the folder of the installed packages.

    Raises:
        SmaltiError: npm is not installed, or it failed.
    """
    installed = folder / "node_modules"
    lock = (manifests / "package-lock.json").read_bytes()
    done = folder / ".installed-lock.json"
    if done.exists() and done.read_bytes() == lock:
        return installed
    npm = shutil.which("npm")
    if npm is None:
        raise SmaltiError("npm is not installed; install it to download the pinned packages of pictograms")
    folder.mkdir(parents=True, exist_ok=True)
    for name in _MANIFESTS:
        shutil.copyfile(manifests / name, folder / name)
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode:
        lines = result.stderr.strip().splitlines() or ["no message"]
        raise SmaltiError(f"npm ci failed in {folder}: {lines[0]}")
    done.write_bytes(lock)
    return installed


@dataclass(frozen=True, kw_only=True)
class Pictogram:
    """One named picture of a package."""

    code: str
    """Code points in hexadecimal, joined by "-", without variation selectors."""
    label: str
    """English name of the code points in emojibase."""
    keywords: tuple[str, ...]
    style: str
    image: str | Path
    """An SVG, or the file of a picture with alpha."""

    def draw(self, size: int) -> UInt8[np.ndarray, "size size 4"]:
        """Draws the picture as a transparent square with straight (not premultiplied) alpha.

        Raises:
            ValueError: the picture cannot be drawn.
        """
        if isinstance(self.image, str):
            return rasterise(self.image, size)
        try:
            with Image.open(self.image) as picture:
                drawn = picture.convert("RGBA").resize((size, size), Image.Resampling.LANCZOS)
        except OSError as error:
            raise ValueError(str(error)) from None
        return np.array(drawn)


@dataclass
class Names:
    """Labels and keywords of code points, from emojibase and emojilib."""

    packages: Path

    @cached_property
    def entries(self) -> dict[str, dict[str, Any]]:
        """Entries of emojibase by code."""
        return {_normal(entry["hexcode"]): entry for entry in self._emojibase}

    @cached_property
    def codes(self) -> dict[str, str]:
        """Codes by label."""
        return {entry["label"]: code for code, entry in self.entries.items()}

    @cached_property
    def keywords(self) -> dict[str, tuple[str, ...]]:
        """Keywords by code: emojibase's tags first, then emojilib's."""
        return {
            code: tuple(dict.fromkeys([*entry.get("tags", ()), *self._emojilib.get(code, ())]))
            for code, entry in self.entries.items()
        }

    def agreed(self, code: str) -> tuple[str, ...]:
        """Returns the keywords that both sources list; each source alone also lists slang and brands."""
        both = set(self.entries[code].get("tags", ())) & set(self._emojilib.get(code, ()))
        return tuple(sorted(both))

    @cached_property
    def _emojilib(self) -> dict[str, tuple[str, ...]]:
        return {
            _normal("-".join(f"{ord(character):X}" for character in emoji)): tuple(
                word.replace("_", " ") for word in words
            )
            for emoji, words in load_json(self.packages / "emojilib/dist/emoji-en-US.json").items()
        }

    def reason_to_drop(self, code: str) -> str | None:
        """Returns why pictures of a code are dropped, or None if they are used."""
        if code in self._skin_tones:
            return "skin tone"
        entry = self.entries.get(code)
        if entry is None:
            return "no name"
        label, group = entry["label"], entry.get("group")
        if group is None or group == _COMPONENT_GROUP:
            return "component"
        if group == _FLAG_GROUP:
            return "flag"
        if group == _PERSON_GROUP and _JOINER in code:
            return "joined persons"
        if "keycap" in label:
            return "keycap"
        if "o’clock" in label or label.endswith("-thirty"):
            return "clock face"
        if group == _SYMBOL_GROUP and label.endswith(" button"):
            return "squared letters"
        return None

    @cached_property
    def _emojibase(self) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = load_json(self.packages / "emojibase-data/en/data.json")
        return entries

    @cached_property
    def _skin_tones(self) -> set[str]:
        return {_normal(skin["hexcode"]) for entry in self._emojibase for skin in entry.get("skins", ())}


def read_pictograms(
    packages: Path, package: str, style: str, names: Names, counts: Counter[str]
) -> Iterator[Pictogram]:
    """Yields the named pictures of a package in the order of their codes, and counts the dropped ones by reason.

    A package is one of Iconify's, or has pictures with alpha in a folder `assets`, named by their codes.

    Raises:
        InvalidInputError: the package is not installed, or is of another kind.
    """
    folder = packages / package
    images = _files(folder) if (folder / "assets").is_dir() else _icons(folder, names, counts)
    for code, image in sorted(images.items()):
        counts["icons"] += 1
        reason = names.reason_to_drop(code)
        if reason:
            counts[f"dropped: {reason}"] += 1
            continue
        counts["named"] += 1
        yield Pictogram(
            code=code,
            label=names.entries[code]["label"],
            keywords=names.keywords[code],
            style=style,
            image=image,
        )


def _files(folder: Path) -> dict[str, str | Path]:
    images: dict[str, str | Path] = {}
    for path in sorted((folder / "assets").iterdir()):
        images.setdefault(_normal(path.stem), path)
    return images


def _icons(folder: Path, names: Names, counts: Counter[str]) -> dict[str, str | Path]:
    """Returns the drawings of a package of Iconify by code; other icons are counted as dropped.

    Some packages list no code points. Their icons have the names of emojibase or of Unicode.
    """
    content = load_json(folder / "icons.json")
    icons = content["icons"]
    codes: dict[str, str] = {}
    for characters, name in load_json(folder / "chars.json").items():
        codes.setdefault(_normal(characters), name)
    if not codes:
        parents = {name: alias["parent"] for name, alias in content.get("aliases", {}).items()}
        by_name = {
            _squashed(name): icon for name, icon in (*parents.items(), *((each, each) for each in icons))
        }
        for code, entry in names.entries.items():
            unicode_name = (
                unicodedata.name(chr(int(code, 16)), "") if _JOINER not in code and "-" not in code else ""
            )
            for name in (entry["label"], unicode_name):
                if name and _squashed(name) in by_name:
                    codes[code] = by_name[_squashed(name)]
                    break
    unused = set(icons) - set(codes.values())
    counts["icons"] += len(unused)
    counts["dropped: no code points"] += len(unused)
    # Some names are aliases, whose drawing has another name or is only mirrored.
    return {code: _svg(icons[name], content) for code, name in codes.items() if name in icons}


def rasterise(svg: str, size: int) -> UInt8[np.ndarray, "size size 4"]:
    """Rasterises an SVG to a transparent square with straight (not premultiplied) alpha.

    Raises:
        ValueError: the SVG cannot be drawn.
    """
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size)
    return np.array(Image.open(io.BytesIO(bytes(png))).convert("RGBA"))


def load_json(path: Path) -> Any:
    """Loads a JSON file of a package.

    Raises:
        InvalidInputError: the file is missing or is not valid JSON.
    """
    try:
        return parse_json(path.read_bytes(), str(path))
    except OSError as error:
        raise InvalidInputError("packages", f"{path} cannot be read ({error.strerror})") from None


def _normal(code: str) -> str:
    return "-".join(part for part in code.upper().split("-") if part != _VARIATION_SELECTOR)


def _squashed(name: str) -> str:
    return re.sub("[^a-z0-9]", "", unicodedata.normalize("NFKD", name).lower())


def _svg(icon: dict[str, Any], icons: dict[str, Any]) -> str:
    left, top = icon.get("left", 0), icon.get("top", 0)
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
    )
