"""The feed of the wall: what visitors see, and what it costs the gateway."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest

from harness.web import SIDE, WebHarness
from smalti.services.web.jobs import wall
from tests.services.web.conftest import MakeWeb
from tests.services.web.test_native import events_of

Events = Iterator[dict[str, Any]]
SECRET = "a blue secret"


@pytest.fixture
def shown(make_web: MakeWeb) -> WebHarness:
    return make_web(wall=True)


@contextmanager
def looking(web: WebHarness) -> Iterator[Events]:
    """Visits the wall; has seen that it is there."""
    with web.client() as http, http.stream("GET", "/api/wall/events") as response:
        assert response.status_code == 200
        events = events_of(response.iter_lines())
        yield events


def until(events: Events, name: str) -> dict[str, Any]:
    """Returns the data of the next event with a name."""
    data: dict[str, Any] = next(each for each in events if each["event"] == name)["data"]
    return data


def create(web: WebHarness, **fields: Any) -> None:
    with web.client() as http:
        http.post("/api/jobs", json={"prompt": SECRET, "n": 2, "candidates": 8, **fields}).raise_for_status()


def watched(web: WebHarness) -> int:
    """Returns the number of streams of jobs that the gateway has open."""
    watchers: Any = web.gateway.gateway.watchers
    return sum(len(each.watchers) for each in watchers._watched.values())


def test_two_visitors_see_a_mosaic_grow_over_one_stream(shown: WebHarness) -> None:
    shown.paused.set()
    with looking(shown) as first, looking(shown) as second:
        assert [until(each, "wall") for each in (first, second)] == [{"drawings": []}] * 2
        create(shown)
        tasks = shown.draw_rows(3)
        described = until(first, "drawing")
        assert described == until(second, "drawing")
        assert (described["rows"], described["columns"], described["count"]) == (SIDE, SIDE, 8)
        for each in (first, second):
            assert {run["candidate"] for run in until(each, "rows")["runs"]} <= set(range(8))
            assert until(each, "preview")["rows_drawn"] == 3
        assert watched(shown) == 1
        # A visitor who comes late sees what is there.
        with looking(shown) as late:
            assert until(late, "wall")["drawings"] == [described]
            assert sum(len(run["tokens"]) for run in until(late, "rows")["runs"]) == 3 * SIDE * 4
            until(late, "preview")
        shown.finish(tasks)
        for each in (first, second):
            ended = until(each, "ended")
            assert (ended["id"], ended["state"], ended["chosen"]) == (described["id"], "succeeded", [7, 6])


def test_visitors_learn_neither_prompts_nor_jobs(shown: WebHarness) -> None:
    with looking(shown) as events:
        until(events, "wall")
        create(shown)
        text = str(until(events, "drawing")) + str(until(events, "ended"))
    assert SECRET not in text
    assert shown.jobs[0].job.id not in text


def test_operator_can_show_prompts(make_web: MakeWeb) -> None:
    web = make_web(wall=True, wall_prompts=True)
    with looking(web) as events:
        until(events, "wall")
        create(web)
        assert until(events, "drawing")["prompt"] == SECRET


def test_job_that_does_not_want_to_be_seen_is_not(shown: WebHarness) -> None:
    shown.paused.set()
    with looking(shown) as events:
        until(events, "wall")
        create(shown, labels={"wall": "off"})
        shown.draw_rows(1)
        create(shown, candidates=4)
        shown.draw_rows(1)
        assert until(events, "drawing")["count"] == 4


def test_number_of_streams_is_bounded_and_ends_with_the_last_visitor(shown: WebHarness) -> None:
    shown.paused.set()
    for _ in range(wall.MAX_DRAWINGS + 2):
        create(shown, n=1, candidates=1)
    shown.draw_rows(1)
    with looking(shown) as events:
        for _ in range(wall.MAX_DRAWINGS):
            until(events, "drawing")
        # Those of another request are seen at the next look, if there is room; there is none.
        until(events, "preview")
        assert watched(shown) == wall.MAX_DRAWINGS
    shown.wait(lambda: watched(shown) == 0)


def test_slow_visitor_gets_the_whole_wall_anew() -> None:
    visitor = wall._Visitor()
    whole = [("wall", "all")]
    assert visitor.take(lambda: iter(whole)) == whole
    visitor.put(("rows", "1"))
    assert visitor.take(lambda: iter(whole)) == [("rows", "1")]
    for number in range(wall.MAX_BEHIND + 1):
        visitor.put(("rows", str(number)))
    assert visitor.take(lambda: iter(whole)) == whole


def test_without_the_setting_there_is_no_wall(http: httpx2.Client) -> None:
    assert http.get("/api/wall/events").status_code == 404
    assert 'data-wall=""' in http.get("/").text
    assert "/api/wall/events" not in http.get("/openapi.json").json()["paths"]
