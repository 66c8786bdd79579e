"""What the tests of the page share: Chromium, open pages, and what they look at. The test acts as the stages."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, expect

from harness.browser import Visit, chromium
from harness.web import SIDE, WebHarness

PROMPT = "a blue cat"
Open = Callable[..., Visit]

PIXEL = """([candidate, row, column = 0]) => {
  const canvas = document.querySelector(`[data-candidate="${candidate}"] canvas`);
  if (!canvas) return [0, 0, 0, 0];
  const height = canvas.height / __SIDE__;
  const pen = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  pen.drawImage(canvas, -Math.floor((column + 0.5) * height), -Math.floor((row + 0.5) * height));
  return [...pen.getImageData(0, 0, 1, 1).data];
}""".replace("__SIDE__", str(SIDE))
"""Returns the colour in the middle of a tile."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def visit(browser: Browser, web: WebHarness) -> Iterator[Visit]:
    """The page, which must log nothing and ask no other host."""
    opened = Visit(browser, web.url, reduced_motion="no-preference")
    yield opened
    opened.close()


@pytest.fixture
def troubled(browser: Browser) -> Iterator[Open]:
    """Opens pages of which some requests are meant to fail."""
    opened: list[Visit] = []

    def open_page(web: WebHarness, **options: Any) -> Visit:
        opened.append(Visit(browser, web.url, **options))
        return opened[-1]

    yield open_page
    for each in opened:
        each.close(expect_failures=True)


def state(visit: Visit) -> Locator:
    return visit.page.locator("[data-state]")


def board(visit: Visit) -> Locator:
    return visit.page.locator("[data-board]")


def act(visit: Visit, name: str) -> Locator:
    return visit.page.get_by_role("button", name=name, exact=True)


def pixel(visit: Visit, candidate: int, row: int, column: int = 0) -> list[int]:
    """Returns the colour in the middle of a tile of a mosaic, with its opacity."""
    colour: list[int] = visit.page.evaluate(PIXEL, [candidate, row, column])
    return colour


def begun(visit: Visit, web: WebHarness, rows: int = 3, prompt: str = PROMPT) -> Any:
    """Draws a prompt up to a row of the first candidates; returns the tasks that are left."""
    web.paused.set()
    before = visit.page.url
    visit.draw(prompt)
    visit.page.wait_for_url(lambda url: "#" in url and url != before)
    tasks = web.draw_rows(rows)
    expect(board(visit)).to_have_attribute("data-mode", "laying")
    return tasks


def wait_for_colour(visit: Visit, row: int) -> None:
    """Waits until a preview shows a row of the first candidate, which the played decoder makes white."""
    visit.page.wait_for_function(f"() => ({PIXEL})([0, {row}]).slice(0, 3).every((value) => value > 250)")
