"""What a picture in the large view is made into: more like it, and the same with a part drawn anew."""

from typing import Any

import httpx2
import pytest
from playwright.sync_api import Browser, Locator, expect

from harness.browser import Visit
from harness.web import SIDE, TOKENS, WebHarness
from smalti.parameters import FREE
from tests.services.web.page.conftest import PROMPT, Open, act, board, pixel, state

pytestmark = pytest.mark.server


def opened(visit: Visit, number: int = 2) -> None:
    """Draws a prompt, and opens a picture; its number begins at 1."""
    visit.draw(PROMPT)
    expect(board(visit).locator("img")).to_have_count(9)
    board(visit).get_by_role("button").nth(number - 1).click()
    expect(visit.page.locator("[data-place]")).to_have_text(f"Picture {number} of 9")


def count(visit: Visit) -> Locator:
    return visit.page.locator("[data-brush-count]")


def middle(visit: Visit, row: int, column: int) -> tuple[float, float]:
    """Returns the middle of a tile in the window."""
    box = visit.page.locator("[data-tiles]").bounding_box()
    assert box
    return box["x"] + box["width"] * (column + 0.5) / SIDE, box["y"] + box["height"] * (row + 0.5) / SIDE


def stroke(visit: Visit, first: tuple[int, int], last: tuple[int, int]) -> None:
    mouse = visit.page.mouse
    mouse.move(*middle(visit, *first))
    mouse.down()
    mouse.move(*middle(visit, *last))
    mouse.up()


def wait_for_job(visit: Visit, before: str) -> None:
    visit.page.wait_for_url(lambda url: "#" in url and url != before and "/" not in url.partition("#")[2])


def redrawn(web: WebHarness) -> list[int]:
    """Returns the tiles that the newest job draws anew."""
    return [tile for tile, token in enumerate(web.jobs[0].job.given) if token == FREE]


def test_brush_marks_tiles_that_are_drawn_anew(visit: Visit, web: WebHarness) -> None:
    opened(visit)
    act(visit, "Draw a part anew").click()
    expect(count(visit)).to_have_text("No tile is marked.")
    expect(act(visit, "Undo")).to_be_disabled()
    assert visit.violations() == []
    # A quick stroke has no gaps; one that begins on a marked tile clears.
    stroke(visit, (1, 1), (3, 5))
    expect(count(visit)).to_have_text(f"5 of {TOKENS} tiles are drawn anew.")
    stroke(visit, (1, 1), (1, 2))
    expect(count(visit)).to_have_text(f"4 of {TOKENS} tiles are drawn anew.")
    act(visit, "Undo").click()
    act(visit, "Invert").click()
    expect(count(visit)).to_have_text(f"{TOKENS - 5} of {TOKENS} tiles are drawn anew.")
    act(visit, "Clear").click()
    act(visit, "Draw these tiles").click()
    expect(visit.page.locator("[data-brush-refusal]")).to_have_text("Mark the tiles to draw anew.")
    stroke(visit, (1, 1), (1, 3))
    assert visit.violations() == []
    visit.page.fill("[data-brush-prompt]", "a red cat")
    web.paused.set()
    before = visit.page.url
    act(visit, "Draw these tiles").click()
    wait_for_job(visit, before)
    assert (redrawn(web), web.jobs[0].job.parameters["prompt"]) == (
        [SIDE + 1, SIDE + 2, SIDE + 3],
        "a red cat",
    )
    tasks = web.draw_rows(1)
    expect(state(visit)).to_contain_text("Drawing 3 tiles anew")
    # The mosaic begins with the tiles that are kept: those of the second picture, which is candidate 30.
    assert pixel(visit, 0, 5, 5)[0] == 30
    assert pixel(visit, 31, 1, 2)[3] == 0
    assert visit.violations() == []
    web.finish(tasks)
    expect(board(visit).locator("img")).to_have_count(9)
    board(visit).get_by_role("button").first.click()
    expect(visit.page.locator("[data-parameters]")).to_contain_text("Drawn anew3 tiles")
    visit.page.keyboard.press("Escape")
    act(visit, "The picture before").click()
    expect(visit.page.locator("[data-place]")).to_have_text("Picture 2 of 9")


def tab_to(visit: Visit, name: str) -> None:
    """Presses Tab until a button has the focus."""
    for _ in range(40):
        if visit.page.evaluate("() => document.activeElement.textContent.trim()") == name:
            return
        visit.page.keyboard.press("Tab")
    raise AssertionError(f"{name} cannot be reached by Tab")


@pytest.mark.slow
def test_brush_works_by_the_keyboard_alone(visit: Visit, web: WebHarness) -> None:
    page, press = visit.page, visit.page.keyboard.press
    opened(visit)
    tab_to(visit, "Draw a part anew")
    press("Enter")
    expect(page.get_by_role("gridcell", name=f"Row {SIDE // 2 + 1}, column {SIDE // 2 + 1}")).to_be_focused()
    press("Control+Home")
    press("Space")
    expect(page.get_by_role("gridcell", name="Row 1, column 1", selected=True)).to_be_focused()
    press("ArrowDown")
    for _ in range(2):
        press("Shift+ArrowRight")
    press("End")
    expect(page.get_by_role("gridcell", name=f"Row 2, column {SIDE}")).to_be_focused()
    press("Space")
    press("Control+z")
    expect(count(visit)).to_have_text(f"4 of {TOKENS} tiles are drawn anew.")
    # Escape leaves the brush, then the large view; arrows turn the pictures again.
    press("Escape")
    expect(act(visit, "Draw a part anew")).to_be_focused()
    press("ArrowRight")
    expect(page.locator("[data-place]")).to_have_text("Picture 3 of 9")
    press("Enter")
    expect(count(visit)).to_have_text("No tile is marked.")
    press("Control+End")
    press("Space")
    before = page.url
    press("Enter")
    wait_for_job(visit, before)
    expect(board(visit).locator("img")).to_have_count(9)
    assert redrawn(web) == [TOKENS - 1]


@pytest.mark.slow
def test_brush_works_by_touch_on_a_small_screen(browser: Browser, web: WebHarness) -> None:
    size = {"width": 320, "height": 640}
    visit = Visit(browser, web.url, viewport=size, has_touch=True, color_scheme="dark")
    opened(visit, 1)
    act(visit, "Draw a part anew").click()
    assert visit.violations() == []
    session = visit.context.new_cdp_session(visit.page)

    def touch(kind: str, *points: tuple[float, float]) -> None:
        session.send(
            "Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y} for x, y in points]}
        )

    touch("touchStart", middle(visit, 0, 0))
    touch("touchMove", middle(visit, 4, 0))
    touch("touchEnd")
    expect(count(visit)).to_have_text(f"5 of {TOKENS} tiles are drawn anew.")
    act(visit, "Cancel").click()
    expect(visit.page.locator("[data-tiles]")).to_be_hidden()
    expect(act(visit, "Draw a part anew")).to_be_visible()
    assert len(web.jobs) == 1
    visit.close()


@pytest.mark.slow
def test_more_like_this_keeps_a_share_of_the_tiles(troubled: Open, web: WebHarness) -> None:
    visit = troubled(web)
    opened(visit)
    strength = visit.page.get_by_label("How different")
    strength.focus()
    strength.press("ArrowLeft")
    strength.press("ArrowLeft")
    expect(visit.page.locator("[data-place]")).to_have_text("Picture 2 of 9")
    expect(visit.page.get_by_text("30 % of its tiles anew")).to_be_visible()
    web.paused.set()
    before = visit.page.url
    act(visit, "More like this").click()
    wait_for_job(visit, before)
    tasks = web.draw_rows(2)
    expect(state(visit)).to_contain_text("Drawing 30 % of the tiles anew")
    assert visit.violations() == []
    web.finish(tasks)
    expect(board(visit).locator("img")).to_have_count(9)
    first = web.jobs[0].job
    assert (first.parameters["strength"], first.parameters["prompt"]) == (0.3, PROMPT)
    # Once more: the same picture and share, another seed; it works after the picture itself is gone.
    web.gateway.delete(web.jobs[1].job.id)
    web.paused.clear()
    before = visit.page.url
    act(visit, "Draw again").click()
    wait_for_job(visit, before)
    expect(board(visit).locator("img")).to_have_count(9)
    again = web.jobs[0].job
    assert (again.given, again.parameters["strength"]) == (first.given, 0.3)
    assert again.parameters["seed"] != first.parameters["seed"]


def job_with_seed(web: WebHarness, seed: str) -> dict[str, Any]:
    with httpx2.Client(base_url=web.url) as http:
        job: dict[str, Any] = http.post("/api/jobs", json={"prompt": PROMPT, "n": 9, "seed": seed}).json()
    return job


@pytest.mark.slow
def test_seed_keeps_all_its_digits(troubled: Open, web: WebHarness) -> None:
    greatest = 2**63 - 1
    visit = troubled(web)
    job = job_with_seed(web, str(greatest))
    visit.page.goto(f"{web.url}/#{job['id']}")
    expect(board(visit).locator("img")).to_have_count(9)
    board(visit).get_by_role("button").first.click()
    expect(visit.page.locator("[data-parameters]")).to_contain_text(f"Seed{greatest}")
    visit.page.keyboard.press("Escape")
    # The browser remembers it, and draws the same pictures when they are gone.
    visit.page.evaluate(
        "(job) => localStorage.setItem('smalti.jobs', JSON.stringify([{ ...job, prompt: job.parameters.prompt }]))",
        job,
    )
    web.clear()
    visit.page.reload()
    act(visit, "Draw the same pictures").click()
    expect(board(visit).locator("img")).to_have_count(9)
    assert web.jobs[0].job.parameters["seed"] == greatest


@pytest.mark.slow
def test_picture_of_another_model_cannot_be_made_into_others(visit: Visit, web: WebHarness) -> None:
    visit.page.route("**/api/models/*", lambda route: route.fulfill(json=other_model(route.fetch().json())))
    visit.page.reload()
    opened(visit)
    expect(act(visit, "More like this")).to_be_hidden()
    expect(act(visit, "Download")).to_be_visible()


def other_model(model: dict[str, Any]) -> dict[str, Any]:
    return {**model, "revision": "sha256:0"}
