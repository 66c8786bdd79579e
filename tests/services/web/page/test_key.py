"""The key in Chromium: asked for once, kept in the tab, and pictures without it."""

import pytest
from playwright.sync_api import Browser, Locator, expect
from pydantic import SecretStr

from harness.browser import Visit
from harness.web import WebHarness
from smalti.services.gateway.identity import Role
from smalti.settings import Auth
from tests.services.web.conftest import MakeWeb
from tests.services.web.page.conftest import PROMPT, Open, act, board


@pytest.fixture
def locked(make_web: MakeWeb, monkeypatch: pytest.MonkeyPatch) -> tuple[WebHarness, str]:
    """A web service that wants keys, and a key."""
    monkeypatch.setenv("SMALTI_AUTH", "keys")
    web: WebHarness = make_web(auth=[Auth.KEYS])
    key, _ = web.gateway.keys.create("red", [Role.DRAW], new_tenant=True)
    own, _ = web.gateway.keys.create("default", [Role.WEB])
    web.restart(key=SecretStr(own))
    return web, key


def question(visit: Visit) -> Locator:
    return visit.page.get_by_role("dialog", name="Your key")


def answer(visit: Visit, key: str) -> None:
    visit.page.get_by_label("Key", exact=True).fill(key)
    act(visit, "Use this key").click()


def test_key_is_asked_for_once_and_kept_in_the_tab(
    browser: Browser, locked: tuple[WebHarness, str], troubled: Open
) -> None:
    web, key = locked
    visit = troubled(web)
    expect(question(visit)).to_be_visible()
    answer(visit, "sk-smalti-wrong")
    expect(question(visit)).to_contain_text("This key is not valid.")
    answer(visit, key)
    expect(question(visit)).to_be_hidden()
    visit.draw(PROMPT)
    expect(board(visit)).to_have_attribute("data-mode", "chosen")
    board(visit).get_by_role("button").first.click()
    visit.page.wait_for_function("() => document.querySelector('[data-large]').naturalWidth > 0")
    visit.page.keyboard.press("Escape")
    assert web.jobs[0].job.tenant == "red"
    visit.page.reload()
    expect(question(visit)).to_be_hidden()
    assert visit.page.evaluate("() => Object.values(localStorage).join().includes('sk-smalti')") is False
    other = troubled(web)
    expect(question(other)).to_be_visible()
