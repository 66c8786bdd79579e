"""The operator's policy: refused prompts and pictures, and a hook that is away."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from harness.gateway import (
    MakeGateway,
    candidates,
    counted,
    encoded_job,
    ended,
    failure,
    finish_chunk,
)
from harness.gateway_calls import count_jobs, create_job, create_request, parameters, served
from harness.grpc_server import asynchronous
from harness.objects import key_of, name_of
from harness.policy import MESSAGE, PolicyProcess
from harness.service import answer
from harness.waiting import wait_until
from smalti.errors import InvalidInputError, RefusedByPolicyError, UnavailableError
from smalti.messages import PromptReading
from smalti.parameters import SecondPass
from smalti.policy import PicturesToCheck, PictureToCheck
from smalti.registry.folder import ModelFolder
from smalti.registry.spec import ModelSpec
from smalti.results import ResultFile
from smalti.rpc.settings import RpcSettings
from smalti.services.gateway.api.decoders import Decoder
from smalti.services.gateway.api.previews import PreviewRenderer
from smalti.services.gateway.policy.hooks import RemoteHook
from smalti.storage import JobKeys
from smalti.v1 import image_pb2
from tests.services.gateway.conftest import any_database

pytestmark = pytest.mark.process

# Prompts


@asynchronous
async def test_prompt_on_the_list_is_refused_and_counted(make_gateway: MakeGateway, tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("weapon\n")
    gateway = make_gateway(policy_list=words)
    counts = counted(gateway)
    async with served(gateway) as stub:
        with pytest.raises(RefusedByPolicyError, match=r"the operator's policy refuses the prompt$"):
            await create_job(stub, parameters(prompt="a Weapon"))
        assert count_jobs(gateway) == 0
        await create_job(stub, parameters(prompt="a flower"))
    assert counts == {("prompt", "list", "refused"): 1, ("prompt", "list", "permitted"): 1}


@asynchronous
async def test_hook_is_asked_before_acceptance(make_gateway: MakeGateway, hook: PolicyProcess) -> None:
    gateway = make_gateway(policy_hook=hook.url)
    counts = counted(gateway)
    async with served(gateway) as stub:
        request = create_request(parameters(prompt="a weapon"))
        with pytest.raises(
            RefusedByPolicyError, match=f"the operator's policy refuses the prompt: {MESSAGE}"
        ):
            await answer(stub.CreateImages(request))
        assert count_jobs(gateway) == 0
        job = await create_job(stub, request_id="0b1e9c1c-6c0a-4b6e-9a3e-0d8f0d5a7a11")
        # A repeated call has its job, whatever the policy says meanwhile.
        gateway.policy.check_prompt = refuse_everything  # type: ignore[method-assign]
        again = await create_job(stub, request_id="0b1e9c1c-6c0a-4b6e-9a3e-0d8f0d5a7a11")
        assert again.id == job.id
    assert counts == {("prompt", "hook", "refused"): 1, ("prompt", "hook", "permitted"): 1}


def refuse_everything(asked: Any) -> None:
    raise RefusedByPolicyError("no")


@any_database
@asynchronous
async def test_prompts_while_the_hook_is_away(make_gateway: MakeGateway) -> None:
    with PolicyProcess() as process:
        strict, lax = (
            make_gateway(policy_hook=process.url, policy_timeout=1.0, policy_away=away)
            for away in ("refuse", "permit")
        )
        strict_counts, lax_counts = counted(strict), counted(lax)
        async with served(strict) as strict_stub, served(lax) as lax_stub:
            for gone in ("slow", "stopped"):
                if gone == "stopped":
                    await asyncio.to_thread(process.stop)
                with pytest.raises(UnavailableError, match="policy does not answer") as unavailable:
                    await create_job(strict_stub, parameters(prompt=f"a {gone} cat"))
                assert unavailable.value.retry_after == 2
                await create_job(lax_stub, parameters(prompt=f"a {gone} cat"))
                # It is not asked again at once.
                with pytest.raises(UnavailableError):
                    await create_job(strict_stub)
                await asyncio.sleep(2.1)
            assert count_jobs(lax) == 2
            await asyncio.to_thread(process.start)
            await until_accepted(strict_stub)
    away = ("prompt", "hook", "away")
    assert strict_counts[away] >= 4
    assert lax_counts == {away: 2}


async def until_accepted(stub: Any) -> None:
    """Creates a job as soon as the hook is there again."""
    async with asyncio.timeout(30):
        while True:
            try:
                await create_job(stub)
                return
            except UnavailableError:
                await asyncio.sleep(0.2)


def test_words_that_the_model_takes_for_the_prompt_are_checked(
    make_gateway: MakeGateway, tmp_path: Path
) -> None:
    words = tmp_path / "words.txt"
    words.write_text("gun\n")
    gateway = make_gateway(policy_list=words)
    counts = counted(gateway)
    job = gateway.create("a firearm")
    (task,) = gateway.send()
    _, event = gateway.stages.encode(task)
    reading = PromptReading(effective_prompt="a gun", cut=False)
    gateway.handle(event.model_copy(update={"reading": reading}))
    assert gateway.state(job) == "failed"
    assert isinstance(failure(gateway.get(job)), RefusedByPolicyError)
    assert counts == {("reading", "list", "refused"): 1}


# Pictures


def test_next_best_pictures_take_the_places_of_refused_ones(
    make_gateway: MakeGateway, hook: PolicyProcess
) -> None:
    gateway = make_gateway(policy_hook=hook.url)
    counts = counted(gateway)
    job = gateway.create(labels={"refuse": "7.5.4"})
    gateway.run_jobs()
    assert candidates(gateway, job) == [6, 3, 2]
    succeeded = gateway.get(job)
    assert [picture.rank for picture in succeeded.pictures] == [0, 1, 2]
    assert succeeded.job.pictures_refused == 3
    result = ResultFile.parse("result", gateway.store.get(JobKeys(job).result))
    assert [picture.index for picture in result.pictures] == [6, 3, 2]
    # Candidates that were not chosen are not asked about, and nothing twice.
    assert counts == {("picture", "hook", "refused"): 3, ("picture", "hook", "permitted"): 3}


def test_diverse_choice_leaves_refused_pictures_out(make_gateway: MakeGateway, hook: PolicyProcess) -> None:
    gateway = make_gateway(policy_hook=hook.url)
    job = gateway.create(labels={"refuse": "7"}, diversity=0.5)
    gateway.run_jobs()
    assert 7 not in candidates(gateway, job)
    assert len(gateway.get(job).pictures) == 3


def test_job_has_fewer_pictures_or_fails_if_too_many_are_refused(
    make_gateway: MakeGateway, hook: PolicyProcess
) -> None:
    gateway = make_gateway(policy_hook=hook.url)
    fewer = gateway.create(labels={"refuse": "7.6.5.4.3.2"})
    none = gateway.create(labels={"refuse": "7.6.5.4.3.2.1.0"})
    gateway.run_jobs()
    assert candidates(gateway, fewer) == [1, 0]
    failed = ended(gateway, none)
    assert failed.job.state == "failed"
    error = failure(failed)
    assert isinstance(error, RefusedByPolicyError)
    assert str(error) == f"the operator's policy refuses every picture of the job: {MESSAGE}"
    assert failed.job.pictures_refused == 8
    gateway.pass_time(5000)
    assert not [key for key in gateway.objects() if key.endswith(".png") and fewer not in key][2:]


def test_refined_pictures_are_asked_about_again(make_gateway: MakeGateway, hook: PolicyProcess) -> None:
    gateway = make_gateway(policy_hook=hook.url)
    jobs = [
        gateway.create(second_pass=SecondPass(upscale=2), labels={"refuse": refuse})
        for refuse in ("7.6.5.4.3.2.1", "7.3", "refined")
    ]
    for task in gateway.send():
        gateway.handle(*gateway.stages.run(task))
    wait_until(lambda: sum(each.job.refining for each in map(gateway.get, jobs)) == 3)
    tasks = gateway.send_refining()
    # Refused pictures are not refined.
    assert sorted(len(task.pictures) for task in tasks) == [1, 3, 3]
    for refine in tasks:
        gateway.handle(gateway.stages.refine(refine))
    assert candidates(gateway, jobs[0]) == [0]
    assert candidates(gateway, jobs[1]) == [6, 5, 4]
    assert name_of(gateway.get(jobs[0]).pictures[0].key).endswith("refined/0.png")
    assert isinstance(failure(ended(gateway, jobs[2])), RefusedByPolicyError)


def test_pictures_wait_for_a_hook_that_is_away(make_gateway: MakeGateway) -> None:
    with PolicyProcess() as process:
        strict = make_gateway(policy_hook=process.url, policy_timeout=1.0)
        process.stop()
        job = strict.create(labels={"refuse": "7"})
        strict.run_jobs()
        wait_until(lambda: strict.policy.waits)
        strict.pass_time(1)
        assert strict.state(job) == "running"
        process.start()

        def swept() -> bool:
            strict.gateway.sweep()
            return strict.state(job) == "succeeded"

        wait_until(swept)
        assert [picture.candidate for picture in strict.get(job).pictures] == [6, 5, 4]


def test_pictures_do_not_wait_if_the_operator_permits_it(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(policy_hook="127.0.0.1:9", policy_timeout=1.0, policy_away="permit")
    counts = counted(gateway)
    job = gateway.create()
    gateway.run_jobs()
    assert candidates(gateway, job) == [7, 6, 5]
    assert counts == {("picture", "hook", "away"): 3}


def test_pictures_expire_with_their_job_if_the_hook_never_comes(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(policy_hook="127.0.0.1:9", policy_timeout=1.0)
    job = gateway.create()
    gateway.run_jobs()
    # The claim of whoever asked is given back, too; until then its row is locked, and a sweep goes past it.
    wait_until(lambda: gateway.policy.waits and gateway.get(job).job.asked_until is None)
    gateway.pass_time(1001)
    assert gateway.state(job) == "expired"


@pytest.mark.parametrize("harm", ["missing", "replaced"])
def test_harmed_pictures_are_made_again_before_anybody_is_asked(
    make_gateway: MakeGateway, hook: PolicyProcess, harm: str
) -> None:
    gateway = make_gateway(policy_hook=hook.url)
    job, _, generates = encoded_job(gateway)
    last = [finish_chunk(gateway, generate) for generate in generates]
    key = key_of(gateway.store, JobKeys(job).candidate(7))
    if harm == "missing":
        gateway.store.delete(key)
    else:
        gateway.store.put(key, b"something else")
    gateway.handle(*last)
    # The thread that has found it out gives the job back after that.
    wait_until(lambda: (row := gateway.get(job).job).candidates_ranked == 4 and row.asked_until is None)
    gateway.clock.advance(121)
    gateway.run_jobs()

    def has_ended() -> bool:
        gateway.pass_time(1)
        return gateway.state(job) != "running"

    wait_until(has_ended)
    assert candidates(gateway, job) == [7, 6, 5]


@pytest.mark.parametrize(("subjects", "asked"), [("prompts", {"prompt"}), ("pictures", {"picture"})])
@asynchronous
async def test_hook_is_asked_only_about_what_it_is_for(
    make_gateway: MakeGateway, hook: PolicyProcess, subjects: str, asked: set[str]
) -> None:
    gateway = make_gateway(policy_hook=hook.url, policy_subjects=subjects)
    counts = counted(gateway)
    async with served(gateway) as stub:
        job = await create_job(stub)
    await asyncio.to_thread(gateway.run_jobs)
    await asyncio.to_thread(ended, gateway, job.id)
    assert {subject for subject, *_ in counts} == asked


def test_large_pictures_are_sent_in_several_calls(hook: PolicyProcess) -> None:
    remote = RemoteHook(hook.url, RpcSettings(attempts=1))
    pictures = [PictureToCheck(candidate=index, content=bytes(2**20)) for index in range(9)]
    asked = PicturesToCheck(job_id="a", prompt="a cat", pictures=pictures, labels={"refuse": "3.8"})
    verdicts = remote.check_pictures(asked, 30.0)
    assert [index for index, verdict in enumerate(verdicts) if verdict.refused] == [3, 8]
    remote.close()


# Entry points


@any_database
@pytest.mark.usefixtures("installed")
@asynchronous
async def test_package_with_an_entry_point_is_asked(make_gateway: MakeGateway) -> None:
    gateway = make_gateway(policy_hook="sample")
    async with served(gateway) as stub:
        with pytest.raises(RefusedByPolicyError, match=r"refuses the prompt: no hats, please$"):
            await create_job(stub, parameters(prompt="a hat"))
        job = await create_job(stub)
        # A broken policy is one that does not answer; what it says is not for callers.
        for prompt in ("a crash", "rubbish"):
            with pytest.raises(UnavailableError, match=r"^the operator's policy does not answer; try again$"):
                await create_job(stub, parameters(prompt=prompt))
            await asyncio.sleep(2.1)
    await asyncio.to_thread(gateway.run_jobs)
    assert await asyncio.to_thread(candidates, gateway, job.id) == [7, 5, 3]


@any_database
@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        (
            "nothing",
            "no installed package has the entry point 'nothing' in smalti.policies; there are: broken, sample",
        ),
        ("broken", "the entry point 'broken' fails"),
        ("policy.example:50051", "others could read the traffic"),
        ("no address:", "must have the form host:port, or be the name of an entry point"),
    ],
)
def test_invalid_hook_is_refused_at_the_start(
    make_gateway: MakeGateway, tiny: ModelFolder, setting: str, problem: str
) -> None:
    with pytest.raises(InvalidInputError, match=problem) as refused:
        make_gateway(policy_hook=setting)
    assert refused.value.field in ("SMALTI_GATEWAY_POLICY_HOOK", "SMALTI_RPC_TLS_CA", "SMALTI_RPC_TLS")


@asynchronous
async def test_refused_previews_are_not_sent(
    make_gateway: MakeGateway, hook: PolicyProcess, tiny: ModelFolder
) -> None:
    from tests.services.gateway.test_watch import decoding

    gateway = make_gateway(previews=0.05, policy_hook=hook.url)
    counts = counted(gateway)
    async with decoding(ModelSpec.load(tiny)) as decoder, served(gateway, decoder=decoder) as stub:
        shown = {}
        for private in (True, False):
            job = await create_job(stub, labels={"private": "yes"} if private else {})
            (task,) = await asyncio.to_thread(gateway.send)
            generates, encoded = gateway.stages.encode(task)
            gateway.handle(encoded, gateway.stages.draw_rows(generates[0], 1))
            watch = stub.WatchJob(image_pb2.WatchJobRequest(job_id=job.id, include_previews=True))
            outcome = "refused" if private else "permitted"
            while not counts["preview", "hook", outcome]:
                await asyncio.sleep(0.02)
            await asyncio.to_thread(gateway.cancel, job.id)
            messages = [message async for message in watch]
            shown[private] = [message for message in messages if message.HasField("preview")]
    assert not shown[True]
    assert shown[False]


@asynchronous
async def test_no_preview_is_decoded_while_the_hook_is_away(
    make_gateway: MakeGateway, tiny: ModelFolder
) -> None:
    gateway = make_gateway()
    job, _, generates = encoded_job(gateway)
    gateway.handle(gateway.stages.draw_rows(generates[0], 1))
    is_away = True
    nobody = Decoder(None, "")  # type: ignore[arg-type]
    renderer = PreviewRenderer(
        gateway.gateway.watchers.preview_tokens, lambda job: nobody, is_away=lambda: is_away
    )
    with gateway.gateway.watchers.watch(job, rows=True):
        gateway.handle(gateway.stages.draw_rows(generates[0], 2))
        assert await renderer.render(gateway.get(job).job, {}) == []
        is_away = False
        with pytest.raises(AttributeError, match="Decode"):
            await renderer.render(gateway.get(job).job, {})
