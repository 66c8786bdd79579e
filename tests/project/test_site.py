"""The documentation site: every page can be found, and links work there as in the repository. `make docs` builds it."""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.paths import DOCS, ROOT
from scripts.build_docs import adjusted, site_paths


def pages(navigation: Any) -> Iterator[str]:
    """Yields the pages of a part of the navigation."""
    if isinstance(navigation, str):
        yield navigation
    else:
        for each in navigation.values() if isinstance(navigation, dict) else navigation:
            yield from pages(each)


def test_every_page_is_in_the_navigation_once() -> None:
    project = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]
    listed = sorted(pages(project["nav"]))
    assert listed == sorted(place for place in site_paths().values() if place.endswith(".md"))


def test_links_are_adjusted_to_the_site() -> None:
    files = site_paths()
    text = "![](docs/pictures/demo.png) [jobs](docs/jobs.md#states) [web](https://example.com/a.md) [no](gone.md)"
    expected = "![](pictures/demo.png) [jobs](jobs.md#states) [web](https://example.com/a.md) [no](gone.md)"
    assert adjusted(ROOT / "README.md", text, files) == expected
    assert adjusted(DOCS / "api.md", "[contract](../protos/README.md)", files) == "[contract](contract.md)"
    assert (
        adjusted(DOCS / "reference" / "index.md", "[up](../up.md) [here](#a)", files)
        == "[up](../up.md) [here](#a)"
    )
    assert all(Path(path).is_file() for path in files)
