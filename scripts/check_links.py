"""Checks that the target of every relative link and picture in the project's Markdown files exists.

Prints each dead link with its file and line, and exits with 1 if there is one.
"""

import itertools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parent.parent


def heading_anchors(path: Path) -> set[str]:
    """Returns the anchors that GitHub makes from the headings of a Markdown file."""
    tokens = MarkdownIt("commonmark").enable("table").parse(path.read_text(encoding="utf-8"))
    headings = (
        after.content for before, after in itertools.pairwise(tokens) if before.type == "heading_open"
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(path: Path) -> Iterator[tuple[int, str]]:
    """Yields (line, target) for each link and picture in a Markdown file."""
    for block in MarkdownIt("commonmark").enable("table").parse(path.read_text(encoding="utf-8")):
        line = block.map[0] + 1 if block.map else 0
        children: list[Token] = block.children or []
        for token in children:
            target = token.attrGet("href") or token.attrGet("src")
            if target:
                yield line, str(target)
        if block.type == "html_block":
            yield from ((line, target) for target in re.findall(r'(?:src|href)="([^"]+)"', block.content))


def is_dead(source: Path, target: str) -> bool:
    """Returns whether the target of a link in `source` does not exist; links to the web are not followed."""
    if re.match(r"[a-z]+:", target):
        return False
    name, _, anchor = unquote(target).partition("#")
    file = (source.parent / name) if name else source
    if not file.exists():
        return True
    return bool(anchor) and file.suffix == ".md" and anchor not in heading_anchors(file)


def main() -> int:
    """Checks every Markdown file that is tracked or new."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    sources = [ROOT / name for name in listed.stdout.splitlines()]
    dead = [
        f"{source.relative_to(ROOT)}:{line}: {target} does not exist"
        for source in sources
        for line, target in links(source)
        if is_dead(source, target)
    ]
    print("\n".join(dead) if dead else f"links: {len(sources)} Markdown files, no dead link")
    return 1 if dead else 0


if __name__ == "__main__":
    sys.exit(main())
