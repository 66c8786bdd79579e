"""The page in Chromium, with the real web service and gateway; the test acts as the stages."""

import re

import pytest
from playwright.sync_api import Browser, expect

from harness.browser import Visit
from harness.web import SIZE, WebHarness
from smalti.messages import FailureReason
from tests.services.web.conftest import MakeWeb
from tests.services.web.page.conftest import PROMPT, Open, act, begun, board, pixel, state, wait_for_colour

pytestmark = pytest.mark.server


def test_rows_appear_and_the_best_move_into_nine_places(visit: Visit, web: WebHarness) -> None:
    expect(board(visit).locator("li")).to_have_count(9)
    expect(visit.page.locator("[data-acts] button")).to_have_count(3)
    assert visit.violations() == []
    tasks = begun(visit, web)
    expect(board(visit).locator("canvas")).to_have_count(32)
    wait_for_colour(visit, 2)
    assert pixel(visit, 0, 5)[3] == 0  # A row that is not drawn has no tiles.
    assert visit.violations() == []
    web.draw_more(tasks, 5)
    wait_for_colour(visit, 4)
    expect(state(visit)).to_contain_text("Drawing 32 candidates")
    web.finish(tasks)
    expect(board(visit).locator("img")).to_have_count(9)
    expect(state(visit)).to_contain_text("The best 9 of 32")
    loaded = "(size) => [...document.querySelectorAll('[data-board] img')].every((each) => each.naturalWidth === size)"
    visit.page.wait_for_function(loaded, arg=SIZE)
    assert visit.violations() == []
    board(visit).get_by_role("button").first.click()
    expect(visit.page.locator("dialog.viewer")).to_be_visible()
    expect(visit.page.locator("[data-parameters]")).to_contain_text("Seed")
    assert visit.page.url.endswith(f"#{web.jobs[0].job.id}/31")
    assert visit.violations() == []


@pytest.mark.slow
def test_escape_cancels_while_it_waits_and_while_it_draws(visit: Visit, web: WebHarness) -> None:
    web.paused.set()
    visit.draw(PROMPT)
    expect(state(visit)).to_have_text("Yours is next")
    visit.page.keyboard.press("Escape")
    expect(state(visit)).to_have_text("Stopped")
    assert web.states() == ["cancelled"]
    begun(visit, web)
    act(visit, "Stop").click()
    expect(state(visit)).to_have_text("Stopped")
    assert web.states() == ["cancelled"] * 2
    assert visit.violations() == []
    expect(act(visit, "Draw")).to_be_visible()


@pytest.mark.slow
def test_place_in_the_queue_is_told_and_kept_up_to_date(visit: Visit, web: WebHarness) -> None:
    web.gateway.create()
    web.wait(lambda: web.states() == ["succeeded"])
    web.paused.set()
    ahead = [web.gateway.create() for _ in range(2)]
    visit.draw(PROMPT)
    expect(state(visit)).to_contain_text("2 jobs are before yours; ")
    assert visit.violations() == []
    web.gateway.delete(ahead[0])
    expect(state(visit)).to_contain_text("1 job is before yours")


@pytest.mark.slow
def test_refused_prompts_are_explained_at_the_field(troubled: Open, web: WebHarness) -> None:
    visit = troubled(web)
    visit.draw("   ")
    expect(visit.page.locator("#refusal")).to_have_text("Write what you want to see.")
    visit.page.evaluate("() => document.querySelector('#prompt').removeAttribute('maxlength')")
    visit.draw("x" * 10_500)
    expect(visit.page.locator("#refusal")).to_contain_text("The prompt ")
    expect(visit.page.locator("#prompt")).to_have_attribute("aria-invalid", "true")
    expect(visit.page.locator("#prompt")).to_be_focused()
    assert visit.violations() == []
    assert web.jobs == []
    visit.page.fill("#prompt", PROMPT)
    expect(visit.page.locator("#refusal")).to_be_empty()


@pytest.mark.slow
def test_full_service_is_asked_again_until_it_has_room(troubled: Open, make_web: MakeWeb) -> None:
    web = make_web(gateway={"open_jobs": 1})
    web.paused.set()
    other = web.gateway.create()
    visit = troubled(web)
    visit.draw(PROMPT)
    expect(state(visit)).to_contain_text("Too much is being drawn right now")
    assert visit.violations() == []
    web.gateway.delete(other)
    web.paused.clear()
    expect(board(visit).locator("img")).to_have_count(9)


@pytest.mark.slow
def test_failed_job_says_why(visit: Visit, web: WebHarness) -> None:
    tasks = begun(visit, web)
    web.gateway.handle(tasks[0].failed(FailureReason.POISON, "two workers ended"))
    expect(state(visit)).to_contain_text("Drawing has failed: ")
    assert visit.violations() == []
    web.paused.clear()
    act(visit, "Draw again").click()
    expect(board(visit).locator("img")).to_have_count(9)


@pytest.mark.slow
def test_reload_in_mid_picture_goes_on(visit: Visit, web: WebHarness) -> None:
    tasks = begun(visit, web)
    wait_for_colour(visit, 2)
    visit.page.reload()
    wait_for_colour(visit, 2)
    assert visit.page.input_value("#prompt") == PROMPT
    web.finish(tasks)
    expect(board(visit).locator("img")).to_have_count(9)
    visit.page.reload()
    expect(board(visit).locator("img")).to_have_count(9)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["web", "gateway"])
def test_restart_in_mid_picture_goes_on(troubled: Open, make_web: MakeWeb, part: str) -> None:
    web = make_web(retry=0.2)
    visit = troubled(web)
    tasks = begun(visit, web)
    wait_for_colour(visit, 2)
    (web.stop if part == "web" else web.stop_gateway)()
    expect(visit.page.locator("[data-line]")).to_contain_text("The connection is lost")
    assert visit.violations() == []
    (web.start if part == "web" else web.start_gateway)()
    expect(visit.page.locator("[data-line]")).to_contain_text("Connected again")
    assert visit.violations() == []
    web.draw_more(tasks, 6)
    wait_for_colour(visit, 5)
    web.finish(tasks)
    expect(board(visit).locator("img")).to_have_count(9)


@pytest.mark.slow
def test_offline_prompt_is_sent_once_the_machine_is_online(troubled: Open, web: WebHarness) -> None:
    visit = troubled(web)
    expect(visit.page.locator("[data-acts] button")).to_have_count(3)
    visit.context.set_offline(True)
    visit.draw(PROMPT)
    expect(visit.page.locator("[data-line]")).to_contain_text("No connection")
    assert visit.violations() == []
    visit.context.set_offline(False)
    expect(board(visit).locator("img")).to_have_count(9)
    assert web.states() == ["succeeded"]


@pytest.mark.slow
def test_link_opens_the_picture_for_others_who_cannot_stop_it(
    visit: Visit, web: WebHarness, browser: Browser, troubled: Open
) -> None:
    tasks = begun(visit, web)
    other = Visit(browser, web.url)
    other.page.goto(visit.page.url)
    expect(board(other)).to_have_attribute("data-mode", "laying")
    expect(act(other, "Stop")).to_be_hidden()
    web.finish(tasks)
    expect(board(other).locator("img")).to_have_count(9)
    expect(other.page.locator("[data-earlier]")).to_be_hidden()
    expect(visit.page.locator("[data-history] img")).to_have_count(1)
    board(visit).get_by_role("button").nth(2).click()
    other.page.goto(visit.page.url)
    expect(other.page.locator("dialog.viewer")).to_be_visible()
    expect(other.page.locator("[data-place]")).to_have_text("Picture 3 of 9")
    other.close()
    web.clear()
    late = troubled(web)
    late.page.goto(visit.page.url)
    expect(state(late)).to_have_text("These pictures are not kept any more")
    assert late.violations() == []


@pytest.mark.slow
def test_everything_works_by_the_keyboard_alone(visit: Visit, web: WebHarness) -> None:
    page = visit.page
    expect(page.locator("[data-acts] button")).to_have_count(3)
    for _ in range(2):
        page.keyboard.press("Tab")
    expect(page.locator("#prompt")).to_be_focused()
    page.keyboard.type("a blue ca")
    options = page.get_by_role("option")
    expect(options.first).to_have_text(re.compile("^ca"))
    assert visit.violations() == []
    for _ in range(options.all_inner_texts().index("cat") + 1):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator("#prompt")).to_have_value("a blue cat ")
    page.keyboard.type("on a ye")
    page.keyboard.press("Escape")
    expect(page.get_by_role("option")).to_have_count(0)
    page.keyboard.press("Enter")
    expect(board(visit).locator("img")).to_have_count(9)
    while page.evaluate("() => !document.activeElement.closest('[data-board]')"):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("[data-place]")).to_have_text("Picture 1 of 9")
    page.keyboard.press("ArrowRight")
    expect(page.locator("[data-place]")).to_have_text("Picture 2 of 9")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").focus()
        page.keyboard.press("Enter")
    assert download.value.suggested_filename == "a-blue-cat-on-a-ye-2.png"
    page.keyboard.press("Escape")
    expect(page.locator("dialog.viewer")).to_be_hidden()
    assert web.states() == ["succeeded"]


@pytest.mark.slow
def test_files_are_saved_in_three_forms(visit: Visit, web: WebHarness) -> None:
    visit.draw(PROMPT)
    board(visit).get_by_role("button").first.click()
    for name, file, begin in (
        ("Download", "a-blue-cat-1.png", b"\x89PNG"),
        ("WebP", "a-blue-cat-1.webp", b"RIFF"),
        ("All in a grid", "a-blue-cat-grid.png", b"\x89PNG"),
    ):
        with visit.page.expect_download() as download:
            act(visit, name).click()
        assert download.value.suggested_filename == file
        assert download.value.path().read_bytes().startswith(begin)
    act(visit, "Copy link").click()
    expect(visit.page.locator("[data-done]")).to_contain_text("The link is copied")


@pytest.mark.slow
@pytest.mark.parametrize("width", [320, 768, 3840])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_width_and_colour_scheme(browser: Browser, web: WebHarness, width: int, scheme: str) -> None:
    size = {"width": width, "height": 640 if width < 1000 else 2160}
    visit = Visit(browser, web.url, viewport=size, color_scheme=scheme, reduced_motion="reduce")
    wide = "() => document.documentElement.scrollWidth > document.documentElement.clientWidth"
    expect(visit.page.locator("[data-acts] button")).to_have_count(3)
    assert visit.violations() == []
    tasks = begun(visit, web, prompt="قطة زرقاء")
    wait_for_colour(visit, 2)
    assert not visit.page.evaluate(wide)
    assert visit.violations() == []
    web.finish(tasks)
    expect(board(visit).locator("img")).to_have_count(9)
    assert not visit.page.evaluate(wide)
    assert visit.violations() == []
    assert visit.page.evaluate("() => getComputedStyle(document.querySelector('#prompt')).direction") == "rtl"
    board(visit).get_by_role("button").first.click()
    expect(visit.page.locator("dialog.viewer")).to_be_visible()
    assert not visit.page.evaluate(wide)
    assert visit.violations() == []
    visit.close()


@pytest.mark.slow
def test_history_is_bounded_and_can_be_cleared(visit: Visit, web: WebHarness) -> None:
    visit.page.evaluate(
        """() => localStorage.setItem("smalti.jobs", JSON.stringify(Array.from({ length: 24 }, (_, index) => (
            { id: `old-${index}`, prompt: `old ${index}`, parameters: { prompt: `old ${index}` }, thumb: "" }))))"""
    )
    visit.page.reload()
    visit.draw(PROMPT)
    expect(board(visit).locator("img")).to_have_count(9)
    expect(visit.page.locator("[data-history] li")).to_have_count(24)
    expect(visit.page.locator("[data-history] li").first).to_contain_text(PROMPT)
    assert visit.violations() == []
    act(visit, "Clear this list").click()
    expect(visit.page.locator("[data-earlier]")).to_be_hidden()
    visit.page.reload()
    expect(visit.page.locator("[data-earlier]")).to_be_hidden()


@pytest.mark.slow
def test_screen_reader_hears_little(visit: Visit, web: WebHarness) -> None:
    visit.page.evaluate(
        """() => {
          window.heard = [];
          const live = document.querySelector("[data-live]");
          new MutationObserver(() => window.heard.push(live.textContent)).observe(live, { childList: true });
        }"""
    )
    tasks = begun(visit, web, rows=1)
    for row in range(2, 9):
        web.draw_more(tasks, row)
        wait_for_colour(visit, row - 1)
    web.finish(tasks)
    visit.page.wait_for_function("() => window.heard.at(-1).startsWith('The best 9 of 32')")
    assert len(visit.page.evaluate("() => window.heard")) <= 4
