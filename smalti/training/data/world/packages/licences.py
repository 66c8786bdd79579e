"""Credits for the work that a data set is made from, in the words that the licences require."""

from dataclasses import asdict, dataclass
from pathlib import Path

from smalti.training.data.world.description import WorldDescription
from smalti.training.data.world.packages.pictograms import load_json

NAME_PACKAGES = ("emojibase-data", "emojilib")
_CHANGES = "The pictures were cropped, scaled, recoloured and composed."
_LICENCES = {
    "Apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "MIT": "https://opensource.org/license/mit",
}


@dataclass(frozen=True, kw_only=True)
class Credit:
    """Title, author and licence of a package."""

    package: str
    version: str
    title: str
    author: str
    source: str
    licence: str
    notice: str
    """Copyright line of the package's licence file, or one with the author."""

    def record(self) -> dict[str, str]:
        """Returns the credit as a dictionary for JSON."""
        return asdict(self)


def load_credits(packages: Path, description: WorldDescription) -> list[Credit]:
    """Loads the credits of a world's installed packages.

    Raises:
        InvalidInputError: a package is not installed.
    """
    credits = []
    for style in description.styles:
        name = style.package
        if style.credit:
            manifest = load_json(packages / name / "package.json")
            credits.append(
                Credit(
                    package=name,
                    version=manifest["version"],
                    licence=manifest["license"],
                    **style.credit.model_dump(),
                )
            )
            continue
        info = load_json(packages / name / "info.json")
        author = info["author"]
        credits.append(
            _credit(packages / name, info["name"], author["name"], author["url"], info["license"]["spdx"])
        )
    for name in NAME_PACKAGES:
        manifest = load_json(packages / name / "package.json")
        author = manifest["author"].partition(" <")[0]
        source = _web_address(manifest["repository"]["url"])
        credits.append(
            _credit(packages / name, manifest["description"].rstrip("."), author, source, manifest["license"])
        )
    return credits


def credits_markdown(credits: list[Credit]) -> str:
    """Returns the credits as a Markdown section for a model card."""
    lines = ["## Pictures and words", "", f"Made from these packages. {_CHANGES}", ""]
    lines += ["| package | version | work | by | licence |", "|---|---|---|---|---|"]
    for credit in credits:
        licence = credit.licence
        if licence in _LICENCES:
            licence = f"[{licence}]({_LICENCES[licence]})"
        lines.append(
            f"| `{credit.package}` | {credit.version} | [{credit.title}]({credit.source}) "
            f"| © {credit.author} | {licence} |"
        )
    under_mit = [credit for credit in credits if credit.licence == "MIT"]
    if under_mit:
        lines += ["", "For the works under the MIT licence:", ""]
        lines += [f"* {credit.title}: {credit.notice}" for credit in under_mit]
        lines.append("")
        notice = Path(__file__).with_name("mit_notice.txt").read_text("utf-8")
        lines += [f"> {line}".rstrip() for line in notice.splitlines()]
    return "\n".join(lines) + "\n"


def _credit(folder: Path, title: str, author: str, source: str, licence: str) -> Credit:
    manifest = load_json(folder / "package.json")
    path = folder / "LICENSE"
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    notices = [line.strip() for line in lines if line.startswith("Copyright (c)")]
    notice = notices[0] if notices else f"Copyright (c) {author}"
    return Credit(
        package=manifest["name"],
        version=manifest["version"],
        title=title,
        author=author,
        source=source,
        licence=licence,
        notice=notice,
    )


def _web_address(repository: str) -> str:
    address = repository.removeprefix("git+").removesuffix(".git")
    return address.replace("git@github.com:", "https://github.com/")
