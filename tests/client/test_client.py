"""`smalti.client` against a real gRPC server: both clients behave alike, from the prompt to the pictures."""

import asyncio
import hashlib
import warnings
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from harness.clients import ALL_VERSIONS, ONCE, AnyClient, versions
from harness.image_service import ServedGateway, png, served_gateway
from smalti.client import AsyncClient, Client, has_ended
from smalti.errors import (
    InvalidInputError,
    JobNotFoundError,
    JobNotSucceededError,
    ModelNotFoundError,
    NotSupportedError,
    RefusedByPolicyError,
    RemoteError,
    RequestCancelledError,
    SmaltiWarning,
)
from smalti.parameters import SamplingParameters
from smalti.pictures import Drawing, load_drawing
from smalti.v1.job_pb2 import JOB_STATE_CANCELLED, JOB_STATE_QUEUED, Job


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_key_goes_with_every_call(
    kind: type[Client | AsyncClient],
    gateway_with_key: tuple[ServedGateway, list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    served, keys = gateway_with_key
    monkeypatch.setenv("SMALTI_KEY", "sk-smalti-from-the-environment")

    def draw(**options: Any) -> set[str]:
        keys.clear()
        if kind is Client:
            with Client(served.address, **options) as client:
                client.generate("a fox")
                list(client.models())
        else:
            asyncio.run(draw_asynchronously(served.address, options))
        assert len(keys) >= 4  # CreateImages, WatchJob, DownloadImages, ListModels.
        return set(keys)

    assert draw(key="sk-smalti-given") == {"Bearer sk-smalti-given"}
    assert draw() == {"Bearer sk-smalti-from-the-environment"}
    assert draw(key="") == {""}
    with pytest.raises(InvalidInputError, match=r"^key: must be a key"):
        draw(key="two words")


async def draw_asynchronously(address: str, options: Any) -> None:
    async with AsyncClient(address, **options) as client:
        await client.generate("a fox")
        _ = [model async for model in client.models()]


@pytest.fixture
def gateway_with_key() -> Iterator[tuple[ServedGateway, list[str]]]:
    """A gateway, and the authorization of each call."""
    keys: list[str] = []

    async def note(method: str, metadata: Mapping[str, str], context: Any) -> None:
        keys.append(metadata.get("authorization", ""))

    with served_gateway(authenticate=note) as served:
        yield served, keys


def test_prompt_becomes_pictures_best_first(client: AnyClient, tmp_path: Path) -> None:
    seen: list[Job] = []
    pictures = client.generate("a fox", n=3, seed=7, on_progress=seen.append)
    assert [(picture.candidate, picture.rank, picture.seed) for picture in pictures] == [
        (10, 0, 7), (11, 1, 7), (12, 2, 7),
    ]  # fmt: skip
    assert [picture.content for picture in pictures] == [png(10), png(11), png(12)]
    assert pictures[0].score > pictures[1].score
    assert pictures[1].image.getpixel((0, 0)) == (11, 0, 0)
    assert versions(seen) == ALL_VERSIONS
    assert seen[0].jobs_ahead == 2
    pictures[2].save(tmp_path / "fox.png")
    assert (tmp_path / "fox.png").read_bytes() == pictures[2].to_png()
    assert load_drawing(tmp_path / "fox.png") == pictures[2].drawing
    assert pictures[2].drawing == Drawing(
        prompt="a fox", seed=7, model="wire", revision=f"sha256:{'0' * 64}", sampling=SamplingParameters(),
        candidates=4, candidate=12, score=0.8,
    )  # fmt: skip
    assert pictures[2].tokens is None


def test_failed_job_raises_its_error_with_a_note(client: AnyClient) -> None:
    with pytest.raises(NotSupportedError, match="it cannot be drawn") as caught:
        client.generate("fail")
    assert caught.value.__notes__ == ["it was job job-0"]
    with pytest.raises(JobNotSucceededError):
        client.download("job-0")


def test_refusals_of_the_policy_are_raised(client: AnyClient, served: ServedGateway) -> None:
    with pytest.raises(RefusedByPolicyError, match="refuses every picture"):
        client.generate("refuse")
    served.gateway.failures["CreateImages"].append(RefusedByPolicyError("the policy refuses the prompt"))
    calls = len(served.gateway.calls["CreateImages"])
    with pytest.raises(RefusedByPolicyError, match="refuses the prompt"):
        client.generate("a fox")
    assert len(served.gateway.calls["CreateImages"]) == calls + 1  # It is not repeated.


def test_cancelled_job_is_an_error(served: ServedGateway) -> None:
    with Client(served.address, settings=ONCE) as client, pytest.raises(RequestCancelledError, match="job-0"):
        client.generate("wait", on_progress=lambda job: client.cancel(job.id) if job.version == 2 else None)


def test_deleted_job_is_gone(client: AnyClient) -> None:
    job = client.create("a fox")
    client.delete(job.id)
    with pytest.raises(JobNotFoundError):
        client.delete(job.id)


def test_unknown_words_give_one_warning(client: AnyClient) -> None:
    with pytest.warns(SmaltiWarning, match='drawing "an elephant"') as caught:
        client.generate("a hippo")
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        client.generate("a fox")


def test_interruption_cancels_the_job(client: AnyClient, served: ServedGateway) -> None:
    def press(job: Job) -> None:
        if job.version == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        client.generate("wait", on_progress=press)
    assert caught.value.__notes__ == ["job job-0 is cancelled"]
    assert served.gateway.jobs["job-0"][-1].state == JOB_STATE_CANCELLED


def test_cancelled_task_cancels_the_job(served: ServedGateway) -> None:
    async def main() -> None:
        async with AsyncClient(served.address, settings=ONCE) as client:
            begun = asyncio.Event()
            task = asyncio.create_task(client.generate("wait", on_progress=lambda job: begun.set()))
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (await client.get("job-0")).state == JOB_STATE_CANCELLED

    asyncio.run(asyncio.wait_for(main(), 30))


def test_interruption_says_if_the_job_cannot_be_cancelled(client: AnyClient, served: ServedGateway) -> None:
    def press(job: Job) -> None:
        served.gateway.failures["CancelJob"].append(NotSupportedError("not today"))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        client.generate("wait", on_progress=press)
    assert caught.value.__notes__ == ["job job-0 could not be cancelled and continues: not today"]
    served.go_on()


def test_download_that_breaks_resumes_with_the_missing_pictures(
    client: AnyClient, served: ServedGateway
) -> None:
    job = client.create("a fox")
    pieces = -(-len(png(10)) // 100)
    served.gateway.breaks["DownloadImages"] = [pieces + 2, 1]
    pictures = client.download(job.id)
    assert [picture.content for picture in pictures] == [png(10), png(11), png(12)]
    asked = [list(call.candidates) for call in served.gateway.calls["DownloadImages"]]
    assert asked == [[10, 11, 12], [11, 12], [11, 12]]


def test_damaged_file_is_downloaded_again_and_never_returned(
    client: AnyClient, served: ServedGateway
) -> None:
    job = client.create("a fox")
    served.gateway.damaged = 1
    pictures = client.download(job.id)
    assert sorted(picture.candidate for picture in pictures) == [10, 11, 12]
    for picture in pictures:
        assert hashlib.sha256(picture.content).hexdigest() == picture.message.sha256
    served.gateway.damaged = 99
    with pytest.raises(RemoteError, match="arrives damaged") as caught:
        client.download(job.id)
    assert caught.value.code == "DATA_LOSS"


def test_download_of_chosen_candidates(client: AnyClient) -> None:
    job = client.create("a fox")
    assert [picture.candidate for picture in client.download(job.id, candidates=[12])] == [12]


def test_jobs_are_listed_over_pages(client: AnyClient, served: ServedGateway) -> None:
    made = [client.create(f"fox {number}").id for number in range(5)]
    assert [job.id for job in client.list()] == made[::-1]
    assert len(served.gateway.calls["ListJobs"]) == 3
    first = client.page(page_size=2)
    assert [job.id for job in first.jobs] == made[:-3:-1]
    assert client.page(page_token=first.next_page_token).jobs[0].id == made[-3]
    then = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    client.list(states=["queued"], labels={"a": "b"}, created_since=then, with_pictures=True, page_size=2)
    request = served.gateway.calls["ListJobs"][-1]
    assert (list(request.states), dict(request.labels)) == ([JOB_STATE_QUEUED], {"a": "b"})
    assert request.created_since.ToDatetime(UTC) == then
    assert (request.page_size, request.view) == (2, 2)
    with pytest.raises(InvalidInputError, match=r"states: must be one of queued, running, .*, not 'lost'"):
        client.list(states=["lost"])


def test_get_and_cancel(client: AnyClient, served: ServedGateway) -> None:
    job = client.create("wait")
    assert client.get(job.id).id == job.id
    assert client.cancel(job.id).state == JOB_STATE_CANCELLED
    assert has_ended(client.get(job.id))
    with pytest.raises(JobNotFoundError) as caught:
        client.get("none")
    assert caught.value.name == "none"


def test_models(client: AnyClient) -> None:
    assert [model.reference.name for model in client.models()] == ["wire"]
    assert client.model() == client.model("wire")
    with pytest.raises(ModelNotFoundError):
        client.model("other")
    with pytest.raises(ModelNotFoundError):
        client.create("a fox", model="other")


def test_default_address(served: ServedGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SMALTI_SERVER", raising=False)
    with Client() as client:
        assert client.server == "127.0.0.1:50050"
    monkeypatch.setenv("SMALTI_SERVER", served.address)
    with Client() as client:
        assert client.model().default
    with pytest.raises(InvalidInputError, match=r"^server: 'nowhere'"):
        Client("nowhere")
    with pytest.raises(InvalidInputError, match=r"^SMALTI_RPC_TLS: "):
        Client("example.org:50050")
