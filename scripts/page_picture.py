"""Takes the picture of the page that the README shows; `make picture` calls it with the whole system running.

The picture has two moments of the same drawing: pictures that grow, and the best nine. The seeds are fixed, so that
another picture differs only if the page or the model does.
"""

import argparse
import io
import json
import os
from pathlib import Path
from typing import Any, Final

from PIL import Image, ImageDraw
from playwright.sync_api import Route, expect

from harness.browser import Visit, chromium

OUT: Final = Path("docs/pictures/page.webp")
EARLIER: Final = ("a red car", "a dog and a red balloon", "a green tree on a white background")
PROMPT: Final = "a blue cat on a yellow background"
FIXED: Final = {"seed": 1, "candidates": 16}
"""What the page itself leaves to chance, and to the gateway."""
WINDOW: Final = {"width": 1180, "height": 800}
GAP: Final = 40
RADIUS: Final = 18
QUALITY: Final = 84
MILLISECONDS: Final = 180_000
"""Time for a drawing on a busy machine."""
GROWING: Final = 0.5
"""Share of the rows that are drawn in the first moment, as nearly as it can be caught."""
SHARE: Final = """() => {
  const { hidden, value, max } = document.querySelector("[data-progress]");
  return document.querySelector("[data-mode=chosen]") ? 1 : hidden ? 0 : value / max;
}"""


def main() -> None:
    """Draws in a browser, and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    out: Path = parser.parse_args().out
    url = os.environ["OPENAI_BASE_URL"].removesuffix("/v1")
    with chromium() as browser:
        expect.set_options(timeout=MILLISECONDS)
        moments = []
        for scheme in ("light", "dark"):
            visit = Visit(browser, url, viewport=WINDOW, color_scheme=scheme)
            visit.page.route("**/api/jobs", _fix)
            for prompt in EARLIER:
                _draw(visit, prompt)
            moments.append(_draw(visit, PROMPT))
            visit.close()
    (growing, _), (_, chosen) = moments
    sheet = _side_by_side([growing, chosen])
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out, "WEBP", quality=QUALITY, method=6)
    print(f"{out}: {sheet.width} x {sheet.height}, {out.stat().st_size / 1000:.0f} kB")


def _fix(route: Route) -> None:
    """Fixes the parameters of a job."""
    if route.request.method != "POST":
        route.continue_()
        return
    body: Any = route.request.post_data_json
    route.continue_(post_data=json.dumps({**body, **FIXED}))


def _draw(visit: Visit, prompt: str) -> tuple[Image.Image, Image.Image]:
    """Draws a prompt; returns the page while the pictures grow, and once they are chosen."""
    page = visit.page
    expect(page.locator("#words")).to_be_hidden()
    before = page.url
    visit.draw(prompt)
    page.wait_for_url(lambda address: address != before, timeout=MILLISECONDS)
    page.evaluate("() => document.activeElement.blur()")
    growing, off = None, 1.0
    while (share := page.evaluate(SHARE)) < 1:
        if growing is None or abs(share - GROWING) < off:
            growing, off = _shot(visit), abs(share - GROWING)
        page.wait_for_timeout(20)
    expect(page.locator("[data-board] img")).to_have_count(9)
    page.evaluate(
        "() => Promise.all([...document.querySelectorAll('[data-board] img')].map((each) => each.decode()))"
    )
    page.evaluate(
        "() => Promise.all(document.getAnimations().map((each) => each.finished.catch(() => null)))"
    )
    expect(page.locator("[data-history] img").first).to_be_visible()
    chosen = _shot(visit)
    return growing or chosen, chosen


def _shot(visit: Visit) -> Image.Image:
    return Image.open(io.BytesIO(visit.page.screenshot())).convert("RGBA")


def _side_by_side(pictures: list[Image.Image]) -> Image.Image:
    """Returns pictures with round corners, side by side."""
    width, height = pictures[0].size
    corners = Image.new("L", (4 * width, 4 * height))
    ImageDraw.Draw(corners).rounded_rectangle((0, 0, 4 * width - 1, 4 * height - 1), 4 * RADIUS, 255)
    mask = corners.resize((width, height))
    sheet = Image.new("RGBA", (len(pictures) * (width + GAP) - GAP, height))
    for index, picture in enumerate(pictures):
        sheet.paste(picture, (index * (width + GAP), 0), mask)
    return sheet


if __name__ == "__main__":
    main()
