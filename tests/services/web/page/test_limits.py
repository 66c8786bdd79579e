"""Limits of a tenant in Chromium: the page says in words which one is used up, and when to come again."""

import re

from playwright.sync_api import expect

from harness.web import WebHarness
from tests.services.web.conftest import MakeWeb
from tests.services.web.page.conftest import Open, state

DAY = 24 * 3600


def test_page_says_when_to_come_again(make_web: MakeWeb, troubled: Open) -> None:
    web: WebHarness = make_web(gateway={"candidates_per_day": 17, "idle_candidates": 16})
    web.gateway.clock.advance(DAY - web.gateway.clock() % DAY + 3600)
    visit = troubled(web)
    visit.draw("a blue cat")
    expect(state(visit)).to_contain_text("drawn in", timeout=60_000)
    visit.draw("a red cat")
    words = r"You may draw 17 candidates a day, and 1 are left; come again at \d\d:\d\d"
    expect(state(visit)).to_have_text(re.compile(words), timeout=60_000)
    assert len(web.jobs) == 1


def test_page_waits_for_a_limit_that_is_soon_over(make_web: MakeWeb, troubled: Open) -> None:
    web: WebHarness = make_web(gateway={"requests_per_minute": 1})
    visit = troubled(web)
    visit.draw("a blue cat")
    expect(state(visit)).to_contain_text("drawn in", timeout=60_000)
    visit.draw("a red cat")
    expect(state(visit)).to_have_text(
        re.compile("You may draw 1 times a minute; trying again in"), timeout=60_000
    )
