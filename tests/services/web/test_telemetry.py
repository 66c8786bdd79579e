"""What the web service records of a request."""

from harness.telemetry import recording, sample_reader
from tests.services.web.conftest import MakeWeb

TRACE = "0af7651916cd43dd8448eb211c80319c"
PATH = "/v1/images/generations"


def test_request_and_its_calls_are_in_the_trace_of_the_client(make_web: MakeWeb) -> None:
    web = make_web()
    with recording("web") as (collector, started):
        with web.client(headers={"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}) as http:
            assert http.post(PATH, json={"prompt": "a cat", "n": 1, "candidates": 1}).status_code == 200
            assert http.post(PATH, json={"prompt": ""}).status_code == 400
        value = sample_reader(web.metrics)
        # A request is counted after its span has ended, which is after its answer.
        web.wait(lambda: value("requests_total", entry=f"POST {PATH}", outcome="failed", reason="400") == 1)
        started.close()
        request, refused = collector.named(f"POST {PATH}")
        calls = collector.named("smalti.v1.ImageService/CreateImages")
    assert {span.trace for span in (request, refused, *calls)} == {TRACE}
    assert [call.parent for call in calls] == [request.span, refused.span]
    assert request.attributes["http.response.status_code"] == 200
    assert value("requests_total", entry=f"POST {PATH}", outcome="done", reason="") == 1
    assert value("request_seconds_count", entry=f"POST {PATH}", outcome="done") == 1
