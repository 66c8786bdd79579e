"""The wall in Chromium: what everybody is drawing, for every visitor."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Locator, expect

from harness.browser import Visit
from harness.web import SIDE, WebHarness
from smalti.messages import FailureReason
from tests.services.web.conftest import MakeWeb
from tests.services.web.page.conftest import PROMPT, act, begun, board

pytestmark = pytest.mark.server

FILLED = """([number, row]) => {
  const canvas = document.querySelectorAll(".mosaics canvas")[number];
  if (!canvas) return false;
  const height = canvas.height / __SIDE__;
  const pen = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  pen.drawImage(canvas, -Math.floor(height / 2), -Math.floor((row + 0.5) * height));
  return pen.getImageData(0, 0, 1, 1).data[3] > 0;
}""".replace("__SIDE__", str(SIDE))
"""Returns whether a mosaic of the wall has a row."""


@pytest.fixture
def shown(make_web: MakeWeb) -> WebHarness:
    return make_web(wall=True)


@pytest.fixture
def artist(browser: Browser, shown: WebHarness) -> Iterator[Visit]:
    opened = Visit(browser, shown.url)
    yield opened
    opened.close()


def at_wall(browser: Browser, web: WebHarness, **options: object) -> Visit:
    visit = Visit(browser, web.url, **options)
    visit.page.get_by_role("link", name="The wall").click()
    expect(still(visit)).to_be_visible()
    return visit


def still(visit: Visit) -> Locator:
    """Returns what an empty wall shows."""
    return visit.page.locator("[data-still]")


def drawings(visit: Visit) -> Locator:
    return visit.page.locator(".drawing")


def test_wall_grows_for_two_visitors(browser: Browser, shown: WebHarness, artist: Visit) -> None:
    visitors = [at_wall(browser, shown), at_wall(browser, shown, color_scheme="dark")]
    for each in visitors:
        assert each.violations() == []
    tasks = begun(artist, shown, rows=2)
    for each in visitors:
        expect(drawings(each).locator("canvas")).to_have_count(32)
        each.page.wait_for_function(FILLED, arg=[0, 1])
        assert not each.page.evaluate(FILLED, [0, 4])
        expect(drawings(each)).not_to_contain_text(PROMPT)
        assert each.violations() == []
    shown.draw_more(tasks, 5)
    for each in visitors:
        each.page.wait_for_function(FILLED, arg=[0, 4])
    shown.finish(tasks)
    for each in visitors:
        # The best stay for a few seconds; then the wall is empty again.
        expect(drawings(each)).to_have_count(0)
        expect(still(each)).to_be_visible()
        each.page.get_by_role("link", name="Draw something").click()
        expect(each.page.locator("#prompt")).to_be_visible()
        each.close()


@pytest.mark.slow
def test_artist_sees_the_wall_and_comes_back(shown: WebHarness, artist: Visit) -> None:
    tasks = begun(artist, shown)
    artist.page.get_by_role("link", name="The wall").click()
    expect(drawings(artist)).to_have_count(1)
    # Escape stops no drawing that is not seen.
    artist.page.keyboard.press("Escape")
    artist.page.get_by_role("link", name="Draw", exact=True).click()
    expect(board(artist)).to_have_attribute("data-mode", "laying")
    shown.finish(tasks)
    expect(board(artist).locator("img")).to_have_count(9)
    assert shown.states() == ["succeeded"]


@pytest.mark.slow
def test_artist_can_stay_off_the_wall(browser: Browser, shown: WebHarness, artist: Visit) -> None:
    visitor = at_wall(browser, shown)
    artist.page.get_by_label("Show on the wall").uncheck()
    begun(artist, shown)
    assert shown.jobs[0].job.labels["wall"] == "off"
    other = Visit(browser, shown.url)
    begun(other, shown)
    expect(drawings(visitor)).to_have_count(1)
    other.close()
    visitor.close()


@pytest.mark.slow
@pytest.mark.parametrize("width", [320, 1280])
def test_wall_shows_failures_and_words_and_joins_again(
    browser: Browser, make_web: MakeWeb, width: int
) -> None:
    web = make_web(wall=True, wall_prompts=True)
    visit = at_wall(browser, web, viewport={"width": width, "height": 700})
    artist = Visit(browser, web.url)
    expect(artist.page.get_by_label("Show on the wall with words")).to_be_checked()
    assert artist.violations() == []
    tasks = begun(artist, web)
    expect(drawings(visit)).to_contain_text(PROMPT)
    wide = "() => document.documentElement.scrollWidth > document.documentElement.clientWidth"
    assert not visit.page.evaluate(wide)
    web.stop()
    expect(visit.page.locator("[data-line]")).to_contain_text("The connection is lost")
    web.start()
    expect(visit.page.locator("[data-line]")).to_contain_text("Connected again")
    expect(drawings(visit)).to_have_count(1)
    web.gateway.handle(tasks[0].failed(FailureReason.POISON, "two workers ended"))
    expect(drawings(visit).get_by_role("img", name="Failed")).to_be_visible()
    assert visit.violations() == []
    for each in (visit, artist):
        each.close(expect_failures=True)


@pytest.mark.slow
def test_without_the_setting_the_page_has_no_wall(visit: Visit) -> None:
    expect(visit.page.get_by_role("link", name="The wall")).to_be_hidden()
    visit.page.goto(f"{visit.url}/#/wall")
    expect(act(visit, "Draw")).to_be_visible()
