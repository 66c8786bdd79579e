"""Our own API: jobs and their events."""

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from harness.web import SIDE, SIZE, TOKENS, WebHarness, picture_file
from smalti.parameters import FREE

CREATE = {"prompt": "a cat", "n": 2, "candidates": 8, "seed": 7}


def create(http: httpx2.Client, **fields: Any) -> dict[str, Any]:
    response = http.post("/api/jobs", json={**CREATE, **fields})
    assert response.status_code == 201, response.text
    job: dict[str, Any] = response.json()
    assert response.headers["location"] == f"/api/jobs/{job['id']}"
    return job


def problem_of(response: httpx2.Response) -> dict[str, Any]:
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert (problem["type"], problem["status"]) == ("about:blank", response.status_code)
    return problem


def events_of(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """Yields the events of a stream: their name, id and data."""
    event: dict[str, Any] = {}
    for line in lines:
        name, _, value = line.partition(": ")
        if line and name:
            event[name] = json.loads(value) if name == "data" else value
        elif not line and "data" in event:
            yield event
            event = {}


def test_job_from_creation_to_deletion(http: httpx2.Client, web: WebHarness) -> None:
    job = create(http, labels={"set": "one"}, priority="batch", time_limit=100)
    assert (job["state"], job["priority"], job["labels"]["set"]) == ("queued", "batch", "one")
    assert job["parameters"]["seed"] == "7"
    path = f"/api/jobs/{job['id']}"
    web.wait(lambda: http.get(path).json()["state"] == "succeeded")
    done = http.get(path).json()
    assert [picture["candidate"] for picture in done["pictures"]] == [7, 6]
    assert done["reading"]["text_tokens"] == 4
    assert http.get(done["pictures"][0]["url"]).content == picture_file(7, 7)
    # What the job says draws the same pictures.
    again = create(http, **done["parameters"])
    assert again["parameters"] == done["parameters"]
    assert http.delete(path).status_code == 204
    assert problem_of(http.get(path))["reason"] == "JOB_NOT_FOUND"
    assert problem_of(http.delete(path))["reason"] == "JOB_NOT_FOUND"
    assert http.get(done["pictures"][0]["url"]).status_code == 404
    web.wait(
        lambda: not [info for info in web.gateway.store.objects(f"jobs/{job['id']}/") if "png" in info.key]
    )


def test_seeds_keep_all_their_digits(http: httpx2.Client, web: WebHarness) -> None:
    greatest = 2**63 - 1
    for seed in (greatest, str(greatest)):
        job = create(http, seed=seed)
        assert job["parameters"]["seed"] == str(greatest)
        assert web.gateway.get(job["id"]).job.parameters["seed"] == greatest
    drawn = http.post("/v1/images/generations", json={"prompt": "a cat", "seed": str(greatest)}).json()
    assert drawn["seed"] == str(greatest)
    for wrong in ("9" * 20, "-1", "7.0", "", "\u0667", 7.5, True):
        assert problem_of(http.post("/api/jobs", json={**CREATE, "seed": wrong}))["field"] == "seed"


def test_list_has_filters_and_pages(http: httpx2.Client, web: WebHarness) -> None:
    web.paused.set()
    jobs = [create(http, labels={"set": "even" if number % 2 == 0 else "odd"})["id"] for number in range(4)]
    first = http.get("/api/jobs", params={"page_size": 3}).json()
    assert [job["id"] for job in first["jobs"]] == jobs[:0:-1]
    second = http.get("/api/jobs", params={"page_size": 3, "page_token": first["next_page_token"]}).json()
    assert ([job["id"] for job in second["jobs"]], second["next_page_token"]) == (jobs[:1], "")
    even = http.get("/api/jobs", params={"label": "set=even", "state": ["queued", "running"]}).json()
    assert [job["id"] for job in even["jobs"]] == [jobs[2], jobs[0]]
    for wrong, field in (
        ({"label": "set"}, "label"),
        ({"state": "lost"}, "state.0"),
        ({"page_token": "x"}, "page_token"),
        ({"created_since": "soon"}, "created_since"),
    ):
        assert problem_of(http.get("/api/jobs", params=wrong))["field"] == field


def test_cancel_stops_a_job_and_delete_removes_an_open_one(http: httpx2.Client, web: WebHarness) -> None:
    web.paused.set()
    first, second = create(http), create(http)
    path = f"/api/jobs/{first['id']}/cancel"
    assert [http.post(path).json()["state"] for _ in range(2)] == ["cancelled", "cancelled"]
    assert http.delete(f"/api/jobs/{second['id']}").status_code == 204
    assert web.states() == ["cancelled"]
    # The marker that tells the stages to stop outlives the job.
    web.wait(
        lambda: f"jobs/{second['id']}/cancelled.json" in [info.key for info in web.gateway.store.objects()]
    )


def test_upper_rows_of_an_earlier_picture_are_kept(http: httpx2.Client, web: WebHarness) -> None:
    job = create(http)
    web.wait(lambda: web.states() == ["succeeded"])
    source = {"job_id": job["id"], "candidate": 7, "keep_rows": 2}
    kept = create(http, initial_image=source)
    assert kept["progress"]["rows"] == 8 * (SIDE - 2)
    reference = {"job_id": job["id"], "candidate": 7}
    edited = create(http, initial_image={**reference, "redrawn_tiles": [0, 9]})
    varied = create(http, initial_image={**reference, "strength": 0.5})
    assert [web.gateway.get(each["id"]).job.given.count(FREE) for each in (edited, varied)] == [2, 0]
    # What a job says about its picture can be sent back, when the picture itself is gone.
    http.delete(f"/api/jobs/{job['id']}")
    for each in (kept, edited, varied):
        again = create(http, initial_image=each["parameters"]["initial_image"])
        assert again["parameters"] == each["parameters"]
        assert web.gateway.get(again["id"]).job.given == web.gateway.get(each["id"]).job.given
    job = create(http)
    web.wait(lambda: set(web.states()) == {"succeeded"})
    source, reference = ({**each, "job_id": job["id"]} for each in (source, reference))
    for wrong, field in (
        ({**source, "keep_rows": 0}, "initial_image.keep_rows"),
        ({**source, "strength": 0.5}, "strength"),
        (reference, "keep_rows"),
        ({**source, "candidate": 99}, None),
        ({"job_id": job["id"]}, "initial_image"),
        ({**source, "tokens": [1] * TOKENS}, "initial_image"),
        ({"tokens": [1] * 63, "strength": 0.5}, "initial_image"),
        ({"tokens": [-1] * TOKENS, "strength": 0.5}, "initial_image.tokens.0"),
    ):
        response = http.post("/api/jobs", json={**CREATE, "initial_image": wrong})
        assert problem_of(response).get("field") == field


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": "x" * 10_000}, "prompt"),
        ({"prompt": "a\0cat"}, "prompt"),
        ({"size": "8x8"}, "size"),
        ({"n": 9, "candidates": 3}, "n"),
        ({"labels": {"Set": "x"}}, "labels"),
        ({"time_limit": 0.1}, "time_limit"),
        ({"request_id": "7"}, "request_id"),
        ({"priority": "first"}, "priority"),
    ],
)
def test_bad_input_is_a_problem_that_names_the_field(
    http: httpx2.Client, web: WebHarness, fields: dict[str, Any], field: str
) -> None:
    problem = problem_of(http.post("/api/jobs", json={**CREATE, **fields}))
    assert (problem["status"], problem["title"], problem["field"]) == (400, "Bad Request", field)
    assert web.jobs == []


def test_events_are_states_rows_and_previews(http: httpx2.Client, web: WebHarness) -> None:
    web.paused.set()
    job = create(http)
    tasks = web.draw_rows(3)
    with http.stream("GET", f"/api/jobs/{job['id']}/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        seen: dict[str, list[Any]] = {"job": [], "rows": [], "preview": []}
        for event in events_of(response.iter_lines()):
            seen[event["event"]].append(event)
            if seen["preview"] and tasks:
                web.finish(tasks)
                tasks = []
    states = [event["data"]["state"] for event in seen["job"]]
    assert (states[0], states[-1]) == ("running", "succeeded")
    assert [int(event["id"]) for event in seen["job"]] == [event["data"]["version"] for event in seen["job"]]
    assert len(seen["job"][-1]["data"]["pictures"]) == 2
    runs = [run for event in seen["rows"] for run in event["data"]["runs"]]
    assert {run["candidate"] for run in runs} >= {0, 1, 2, 3}
    assert seen["preview"][0]["data"]["rows_drawn"] == 3
    assert b"\r" not in http.get(f"/api/jobs/{job['id']}/events").content
    # With the last id, there is nothing more to come.
    last = {"last-event-id": seen["job"][-1]["id"]}
    assert http.get(f"/api/jobs/{job['id']}/events", headers=last).status_code == 204
    assert (
        problem_of(http.get(f"/api/jobs/{job['id']}/events", headers={"last-event-id": "x"}))["status"] == 400
    )
    assert problem_of(http.get("/api/jobs/nothing/events"))["status"] == 404


def test_events_resume_after_a_version_and_over_a_restart_of_the_gateway(
    http: httpx2.Client, web: WebHarness
) -> None:
    web.paused.set()
    job = create(http)
    tasks = web.draw_rows(1)
    web.wait(lambda: web.gateway.get(job["id"]).job.version > 1)
    since = {"last-event-id": str(web.gateway.get(job["id"]).job.version)}
    with http.stream("GET", f"/api/jobs/{job['id']}/events", headers=since) as response:
        web.stop_gateway()
        web.finish(tasks)
        web.start_gateway()
        versions = [int(event["id"]) for event in events_of(response.iter_lines()) if event["event"] == "job"]
    assert versions
    assert min(versions) > int(since["last-event-id"])


def test_models_with_the_words_that_they_know(http: httpx2.Client) -> None:
    (model,) = http.get("/api/models").json()["models"]
    assert (model["name"], model["default"]) == ("pictograms", True)
    assert (model["rows"], model["columns"], model["default_n"], model["image_width"]) == (
        SIDE,
        SIDE,
        9,
        SIZE,
    )
    assert "vocabulary" not in model
    described = http.get("/api/models/pictograms").json()
    words = described.pop("vocabulary")
    assert described == model
    assert words["closed"]
    assert "cat" in words["groups"]["things"]
    assert "blue" in words["groups"]["colours"]
    assert problem_of(http.get("/api/models/nothing"))["reason"] == "MODEL_NOT_FOUND"
