"""Several models, and several revisions of one, over HTTP: each model once, and jobs of the one that is asked for."""

from harness.fleet import another_card, card_of, say_hello
from tests.services.web.conftest import MakeWeb


def test_models_are_listed_once_and_can_be_asked_for(make_web: MakeWeb) -> None:
    web = make_web(gateway={"write": 3})
    own = card_of(web.gateway)
    other = another_card(own, "3", name="other", default_n=1)
    say_hello(web.gateway, another_card(own, "1"), another_card(own, "2"), other)
    with web.client() as http:
        found = http.get("/v1/models").json()["data"]
        assert sorted(each["id"] for each in found) == ["other", own.name]
        (default,) = [each for each in http.get("/api/models").json()["models"] if each["default"]]
        assert default["name"] == own.name
        described = http.get("/api/models/other").json()
        assert (described["revision"], described["default_n"]) == (other.revision, 1)
        assert described["vocabulary"]["groups"]
        job = http.post("/api/jobs", json={"prompt": "a cat", "model": "other"}).json()
        assert (job["parameters"]["model"], job["parameters"]["revision"]) == ("other", other.revision)
