"""The choice of a model: there is one where the gateway has several, and its words and jobs follow."""

from playwright.sync_api import Browser, expect

from harness.browser import Visit
from harness.fleet import another_card, card_of, say_hello
from smalti.v1.model_pb2 import Vocabulary, WordGroup
from tests.services.web.conftest import MakeWeb
from tests.services.web.page.conftest import act


def test_choice_is_there_for_several_models(browser: Browser, make_web: MakeWeb) -> None:
    web = make_web(gateway={"write": 3})
    own = card_of(web.gateway)
    words = Vocabulary(closed=True, groups=[WordGroup(name="things", words=["zebra"])])
    other = another_card(own, "3", name="other")
    other.message.vocabulary.CopyFrom(words)
    visit = Visit(browser, web.url)
    expect(visit.page.locator("[data-model] select")).to_be_hidden()
    visit.close()
    say_hello(web.gateway, own, other)
    with web.client() as http:
        web.wait(lambda: len(http.get("/api/models").json()["models"]) == 2)
    visit = Visit(browser, web.url)
    choice, field = (
        visit.page.locator("[data-model] select"),
        visit.page.get_by_role("combobox", name="What do you want"),
    )
    expect(choice).to_have_value(own.name)
    choice.select_option("other")
    field.press_sequentially("zeb")
    expect(visit.page.get_by_role("option", name="zebra")).to_be_visible()
    field.fill("a zebra")
    act(visit, "Draw").click()
    web.wait(lambda: web.jobs)
    assert web.jobs[0].job.revision == other.revision
    visit.close()
