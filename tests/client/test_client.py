"""`smalti.client` against a real gRPC server: both clients behave alike, also when the connection breaks."""

import asyncio
import hashlib
import inspect
import threading
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from harness.image_service import ROWS, ServedGateway, png, served_gateway
from smalti.client import AsyncClient, Client, has_ended
from smalti.errors import (
    InvalidInputError,
    JobNotFoundError,
    JobNotSucceededError,
    ModelNotFoundError,
    NotSupportedError,
    OverloadedError,
    RemoteError,
    RequestCancelledError,
    RequestExpiredError,
    RequestIdReusedError,
    SmaltiWarning,
    UnavailableError,
)
from smalti.parameters import SamplingParameters
from smalti.pictures import Drawing, load_drawing
from smalti.rpc.settings import RpcSettings
from smalti.up.servers import free_port
from smalti.v1.job_pb2 import JOB_STATE_CANCELLED, JOB_STATE_QUEUED, Job, PictureReference
from smalti.v1.sampling_pb2 import PRIORITY_BATCH
from smalti.v1.tokens_pb2 import ImageTokens

# Without gRPC's own retries, so that every retry is the client's.
ONCE = RpcSettings(attempts=1)


class AnyClient:
    """Calls either client in the same way: runs coroutines, and returns iterators as lists."""

    def __init__(self, kind: str, address: str, **options: Any) -> None:
        self._loop = asyncio.new_event_loop() if kind == "async" else None
        self.client: Any
        if self._loop is None:
            self.client = Client(address, **options)
        else:

            async def make() -> AsyncClient:
                return AsyncClient(address, **options)

            self.client = self._loop.run_until_complete(make())

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            result = getattr(self.client, name)(*arguments, **named)
            if inspect.isasyncgen(result):
                result = self._collect(result)
            if self._loop is not None:
                return self._loop.run_until_complete(result)
            return list(result) if inspect.isgenerator(result) else result

        return call

    @staticmethod
    async def _collect(items: Any) -> list[Any]:
        return [item async for item in items]

    def end(self) -> None:
        self.close()
        if self._loop is not None:
            self._loop.close()


@pytest.fixture(scope="module")
def server() -> Iterator[ServedGateway]:
    with served_gateway() as served:
        yield served


@pytest.fixture
def served(server: ServedGateway) -> ServedGateway:
    """The gateway, without jobs, and with a connection that does not break."""
    server.gateway.__init__()  # type: ignore[misc]
    return server


@pytest.fixture(params=["blocking", "async"])
def client(request: pytest.FixtureRequest, served: ServedGateway) -> Iterator[AnyClient]:
    uniform = AnyClient(request.param, served.address, settings=ONCE, retry_seconds=20)
    yield uniform
    uniform.end()


def versions(jobs: list[Job]) -> list[int]:
    return [job.version for job in jobs]


ALL = list(range(1, ROWS + 4))


def test_prompt_becomes_pictures_best_first(client: AnyClient, tmp_path: Path) -> None:
    seen: list[Job] = []
    pictures = client.generate("a fox", n=3, seed=7, on_progress=seen.append)
    assert [(picture.candidate, picture.rank, picture.seed) for picture in pictures] == [
        (10, 0, 7), (11, 1, 7), (12, 2, 7),
    ]  # fmt: skip
    assert [picture.content for picture in pictures] == [png(10), png(11), png(12)]
    assert pictures[0].score > pictures[1].score
    assert pictures[1].image.getpixel((0, 0)) == (11, 0, 0)
    assert versions(seen) == ALL
    assert seen[0].jobs_ahead == 2
    pictures[2].save(tmp_path / "fox.png")
    assert (tmp_path / "fox.png").read_bytes() == pictures[2].to_png()
    assert load_drawing(tmp_path / "fox.png") == pictures[2].drawing
    assert pictures[2].drawing == Drawing(
        prompt="a fox", seed=7, model="wire", revision=f"sha256:{'0' * 64}", sampling=SamplingParameters(),
        candidates=4, candidate=12, score=0.8,
    )  # fmt: skip
    assert pictures[2].tokens is None


def test_every_option_arrives(client: AnyClient, served: ServedGateway) -> None:
    tokens = ImageTokens(tokens=[1, 2, 3])
    job = client.create(
        "a fox", n=0, candidates=4, first_candidate=16, seed=0, guidance_scale=0, temperature=0.5, top_k=0,
        top_p=0.9, model="wire", revision="sha256:1", initial_image=tokens, keep_rows=2, priority="batch",
        time_limit=1.5, retention=60, labels={"a": "b"}, request_id="theirs",
    )  # fmt: skip
    (request,) = served.gateway.calls["CreateImages"]
    parameters = request.parameters
    assert job.id == "job-0"
    assert (parameters.prompt, parameters.n, parameters.candidates) == ("a fox", 0, 4)
    # A value of 0 is sent, unlike one that is left out.
    assert all(parameters.HasField(name) for name in ("n", "seed", "first_candidate"))
    sampling = parameters.sampling
    assert (sampling.guidance_scale, sampling.temperature, sampling.top_k, sampling.top_p) == (0, 0.5, 0, 0.9)
    assert sampling.HasField("top_k")
    assert (parameters.model.name, parameters.model.revision) == ("wire", "sha256:1")
    assert (parameters.initial_image.tokens, parameters.initial_image.keep_rows) == (tokens, 2)
    assert (request.priority, dict(request.labels), request.request_id) == (
        PRIORITY_BATCH, {"a": "b"}, "theirs",
    )  # fmt: skip
    assert (request.time_limit.ToMilliseconds(), request.retention.seconds) == (1500, 60)


def test_options_that_are_left_out_stay_unset(client: AnyClient, served: ServedGateway) -> None:
    client.create("a fox", n=None, labels=None)
    (request,) = served.gateway.calls["CreateImages"]
    assert [field.name for field, _ in request.ListFields()] == ["request_id", "parameters"]
    assert [field.name for field, _ in request.parameters.ListFields()] == ["prompt"]


def test_initial_image_is_a_file_its_content_or_a_picture_of_a_job(
    client: AnyClient, served: ServedGateway, tmp_path: Path
) -> None:
    (tmp_path / "fox.png").write_bytes(b"content")
    reference = PictureReference(job_id="job-0", candidate=3)
    for image in (tmp_path / "fox.png", b"content", reference):
        client.create("a fox", initial_image=image, keep_rows=1)
    asked = [call.parameters.initial_image for call in served.gateway.calls["CreateImages"]]
    assert [image.image for image in asked] == [b"content", b"content", b""]
    assert asked[2].picture == reference
    for wrong in (tmp_path / "none.png", 7):
        with pytest.raises(InvalidInputError, match=r"^initial_image: "):
            client.create("a fox", initial_image=wrong)


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"seed": 2**64}, "seed"),
        ({"n": "many"}, "n"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"time_limit": "long"}, "time_limit"),
        ({"labels": {"a": 1}}, "labels"),
        ({"priority": "high"}, "priority"),
        ({"top_p": 7.0}, "top_p"),  # The server checks ranges.
    ],
)
def test_bad_input_names_the_argument(client: AnyClient, asked: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        client.create(**{"prompt": "a fox", **asked})
    assert caught.value.field == field


def test_errors_name_arguments_instead_of_fields_of_the_contract(
    client: AnyClient, served: ServedGateway
) -> None:
    for field, name in (
        ("parameters.model.name", "model"),
        ("parameters.initial_image.image", "initial_image"),
        ("parameters.initial_image.keep_rows", "keep_rows"),
        ("parameters.prompt", "prompt"),
        ("time_limit", "time_limit"),
    ):
        served.gateway.failures["CreateImages"].append(InvalidInputError(field, "is wrong"))
        with pytest.raises(InvalidInputError, match=f"^{name}: is wrong$"):
            client.create("a fox")


def test_unknown_argument_is_a_type_error(client: AnyClient) -> None:
    with pytest.raises(TypeError, match="'steps'"):
        client.create("a fox", steps=3)


def test_every_job_has_its_own_request_id(client: AnyClient, served: ServedGateway) -> None:
    client.create("a fox")
    client.create("a fox")
    first, second = (call.request_id for call in served.gateway.calls["CreateImages"])
    assert len(first) == 36
    assert first != second


def test_create_is_repeated_with_the_same_id_when_the_answer_is_lost(
    client: AnyClient, served: ServedGateway
) -> None:
    client.model()
    served.gateway.lost_answers["CreateImages"] = 2
    job = client.create("a fox")
    assert list(served.gateway.jobs) == [job.id]
    assert len({call.request_id for call in served.gateway.calls["CreateImages"]}) == 1
    assert len(served.gateway.calls["CreateImages"]) == 3


def test_request_id_of_the_user_returns_the_same_job(client: AnyClient) -> None:
    assert client.create("a fox", request_id="mine").id == client.create("a fox", request_id="mine").id
    with pytest.raises(RequestIdReusedError) as caught:
        client.create("a cat", request_id="mine")
    assert caught.value.name == "job-0"


def test_only_unavailable_is_retried(client: AnyClient, served: ServedGateway) -> None:
    client.model()
    for error in (JobNotSucceededError("no"), NotSupportedError("no"), RuntimeError("no")):
        served.gateway.failures["GetJob"].append(error)
        before = len(served.gateway.calls["GetJob"])
        with pytest.raises((JobNotSucceededError, NotSupportedError, RemoteError)):
            client.get("job-0")
        assert len(served.gateway.calls["GetJob"]) == before + 1


def test_server_that_has_never_answered_is_given_up_at_once(client: AnyClient) -> None:
    nobody = AnyClient("blocking", f"127.0.0.1:{free_port()}", settings=ONCE, retry_seconds=3600)
    try:
        with pytest.raises(UnavailableError):
            nobody.model()
        with pytest.raises(UnavailableError):
            nobody.watch("job-0")
    finally:
        nobody.end()


def test_retries_end(served: ServedGateway) -> None:
    client = AnyClient("blocking", served.address, settings=ONCE, retry_seconds=0.5)
    try:
        client.model()
        served.gateway.failures["GetJob"] += [UnavailableError("down")] * 50
        with pytest.raises(UnavailableError, match="down"):
            client.get("job-0")
        assert 1 < len(served.gateway.calls["GetJob"]) < 10
    finally:
        client.end()


def test_full_server_says_when_to_retry(client: AnyClient, served: ServedGateway) -> None:
    served.gateway.failures["CreateImages"].append(OverloadedError("full", 0.3))
    with pytest.raises(OverloadedError) as caught:
        client.create("a fox")
    assert caught.value.retry_after == 0.3
    assert len(served.gateway.calls["CreateImages"]) == 1


def test_wait_waits_for_a_full_server(client: AnyClient, served: ServedGateway) -> None:
    served.gateway.failures["CreateImages"] += [OverloadedError("full", 0.1)] * 2
    assert client.create("a fox", wait=10).id == "job-0"
    assert len(served.gateway.calls["CreateImages"]) == 3
    served.gateway.failures["CreateImages"].append(OverloadedError("full", 60))
    with pytest.raises(OverloadedError):
        client.create("a fox", wait=10)


def test_watch_yields_every_version_once_and_ends(client: AnyClient) -> None:
    job = client.create("a fox")
    assert versions(client.watch(job.id)) == ALL
    assert versions(client.watch(job.id, since_version=4)) == ALL[4:]
    # A job that has ended is always yielded.
    assert versions(client.watch(job.id, since_version=ALL[-1])) == ALL[-1:]


def test_watch_that_breaks_resumes_where_it_was(client: AnyClient, served: ServedGateway) -> None:
    job = client.create("a fox")
    served.gateway.breaks["WatchJob"] = [2, 3]
    assert versions(client.watch(job.id)) == ALL
    calls = served.gateway.calls["WatchJob"]
    assert [call.since_version for call in calls] == [0, 2, 5]
    assert not calls[0].HasField("since_version")


def test_watch_that_ends_too_early_resumes(client: AnyClient, served: ServedGateway) -> None:
    job = client.create("a fox")
    served.gateway.silent_ends = [2]
    assert versions(client.watch(job.id)) == ALL


def test_watch_that_is_refused_for_a_while_resumes(client: AnyClient, served: ServedGateway) -> None:
    job = client.create("a fox")
    served.gateway.failures["WatchJob"] += [OverloadedError("full", 0.1), RequestExpiredError("late")]
    assert versions(client.watch(job.id)) == ALL


def test_watch_outlives_the_server(served: ServedGateway) -> None:
    """The server stops and starts again on its port while a job is watched."""
    with Client(served.address, settings=ONCE, retry_seconds=30) as client:
        job = client.create("wait")
        seen: list[Job] = []
        thread = threading.Thread(target=lambda: seen.extend(client.watch(job.id)))
        thread.start()
        assert served.gateway.watching.wait(30)
        served.stop()
        served.start()
        served.go_on()
        thread.join(30)
        assert versions(seen) == ALL


def test_events_request_tokens_and_previews(client: AnyClient, served: ServedGateway) -> None:
    job = client.create("a fox")
    assert versions(client.events(job.id)) == ALL
    assert served.gateway.calls["WatchJob"][-1].include_rows
    assert served.gateway.calls["WatchJob"][-1].include_previews
    client.watch(job.id)
    assert not served.gateway.calls["WatchJob"][-1].include_rows


def test_failed_job_raises_its_error_with_a_note(client: AnyClient) -> None:
    with pytest.raises(NotSupportedError, match="it cannot be drawn") as caught:
        client.generate("fail")
    assert caught.value.__notes__ == ["it was job job-0"]
    with pytest.raises(JobNotSucceededError):
        client.download("job-0")


def test_cancelled_job_is_an_error(served: ServedGateway) -> None:
    with Client(served.address, settings=ONCE) as client, pytest.raises(RequestCancelledError, match="job-0"):
        client.generate("wait", on_progress=lambda job: client.cancel(job.id) if job.version == 2 else None)


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


def test_close_ends_threads_and_streams(served: ServedGateway) -> None:
    """Threads end with the client, and a watch that was closed makes no more calls."""
    before = set(threading.enumerate())
    with Client(served.address, settings=ONCE) as client:
        job = client.create("wait")
        watch = client.watch(job.id)
        assert next(watch).id == job.id
        during = set(threading.enumerate()) - before
        assert during
        watch.close()
    served.go_on()
    for thread in during:
        thread.join(10)
        assert not thread.is_alive()
