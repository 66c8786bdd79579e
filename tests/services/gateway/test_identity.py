"""Who may call what: every method with every role, keys, certificates, and what tenants see of each other."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from harness.certificates import make_identity
from harness.gateway import GatewayHarness
from harness.gateway_calls import create_job, create_request, finished_job, get_job, served
from harness.grpc_server import asynchronous
from harness.service import answer, called
from harness.telemetry import captured_log
from smalti.errors import (
    AuthenticationError,
    InvalidInputError,
    JobNotFoundError,
    PermissionDeniedError,
    PictureNotFoundError,
    SmaltiError,
)
from smalti.rpc.channel import channel
from smalti.rpc.server import serve
from smalti.rpc.settings import RpcSettings
from smalti.services.gateway.api.servicer import ImageServicer
from smalti.services.gateway.identity import Principal, Role
from smalti.services.gateway.identity.gatekeeper import KNOWN_SECONDS
from smalti.services.gateway.identity.principal import ROLES
from smalti.services.gateway.identity.ways import chosen_ways, principals_by_name
from smalti.services.gateway.jobs.repository import JobFilter
from smalti.settings import Auth
from smalti.v1 import batch_pb2, file_pb2, image_pb2, job_pb2
from smalti.v1.batch_pb2_grpc import BatchServiceStub
from smalti.v1.file_pb2_grpc import FileServiceStub
from smalti.v1.image_pb2_grpc import ImageServiceStub, add_ImageServiceServicer_to_server
from smalti.v1.sampling_pb2 import PRIORITY_BATCH, PRIORITY_INTERACTIVE

SERVICES = {
    "ImageService": (image_pb2, ImageServiceStub),
    "FileService": (file_pb2, FileServiceStub),
    "BatchService": (batch_pb2, BatchServiceStub),
}
CALLERS = {Role.DRAW, Role.BATCH, Role.ADMIN}

# What each role may call, a second time: a change of the table must be meant.
MAY: Mapping[str, set[Role]] = {
    **dict.fromkeys(("CreateImages", "ListJobs", "CancelJob", "DeleteJob", "WatchJob"), CALLERS),
    **dict.fromkeys(("GetJob", "DownloadImages", "ListModels", "GetModel"), CALLERS | {Role.WEB}),
    **dict.fromkeys(("CreateFile", "FinishFile", "UploadFile", "ComposeFile"), CALLERS),
    "CreateBatch": {Role.BATCH, Role.ADMIN},
    **dict.fromkeys(("GetBatch", "ListBatches", "WatchBatch", "ListBatchFiles"), CALLERS),
    **dict.fromkeys(("DownloadBatchFile", "PauseBatch", "ResumeBatch"), CALLERS),
    **dict.fromkeys(("CancelBatch", "DeleteBatch"), CALLERS),
    **dict.fromkeys(("GetFile", "ListFiles", "DeleteFile", "DownloadFile"), CALLERS),
}
METHODS = {
    method.name: (service, getattr(module, method.input_type.name))
    for service, (module, _) in SERVICES.items()
    for method in module.DESCRIPTOR.services_by_name[service].methods
}


@asynccontextmanager
async def keyed(gateway: GatewayHarness, *keys: str, **options: Any) -> AsyncIterator[Sequence[Any]]:
    """Serves a gateway that wants keys; yields a stub for each key, where "" sends none."""
    made = {"stub": options.pop("stub", ImageServiceStub)}
    async with served(gateway, authenticate=gateway.gatekeeper(Auth.KEYS, **options), **made) as stub:
        yield [WithKey(stub, key) for key in keys]


class WithKey:
    """A stub that sends a key."""

    def __init__(self, stub: Any, key: str) -> None:
        self._stub = stub
        self._metadata = (("authorization", f"Bearer {key}"),) if key else ()

    def __getattr__(self, name: str) -> Callable[[Any], Any]:
        return lambda request: getattr(self._stub, name)(request, metadata=self._metadata)


def request_of(method: str, role: Role) -> Any:
    if method == "CreateImages":
        return create_request(priority=PRIORITY_BATCH if role is Role.BATCH else PRIORITY_INTERACTIVE)
    _, kind = METHODS[method]
    names = [name for name in ("job_id", "file_id", "batch_id") if name in kind.DESCRIPTOR.fields_by_name]
    request = kind(**dict.fromkeys(names, "none"))
    return iter([request]) if method == "UploadFile" else request


async def outcome(stub: Any, method: str, role: Role = Role.DRAW) -> SmaltiError | None:
    try:
        await answer(getattr(stub, method)(request_of(method, role)))
    except SmaltiError as error:
        return error
    return None


def key_of(gateway: GatewayHarness, *roles: Role, tenant: str = "default") -> str:
    key, _ = gateway.keys.create(tenant, roles or (Role.DRAW,), new_tenant=True)
    return key


def test_table_has_every_method_and_no_other() -> None:
    assert set(ROLES) == {f"/smalti.v1.{service}/{method}" for method, (service, _) in METHODS.items()}
    assert set(METHODS) == set(MAY)


@pytest.mark.parametrize("method", MAY)
@asynchronous
async def test_each_call_is_open_to_its_roles_alone(gateway: GatewayHarness, method: str) -> None:
    keys = {role: key_of(gateway, role) for role in Role}
    _, stub_of = SERVICES[METHODS[method][0]]
    async with keyed(gateway, *keys.values(), "", "sk-smalti-wrong", stub=stub_of) as stubs:
        for role, stub in zip(keys, stubs, strict=False):
            found = await outcome(stub, method, role)
            assert isinstance(found, PermissionDeniedError) is (role not in MAY[method]), (role, found)
            assert not isinstance(found, AuthenticationError)
        for nobody in stubs[-2:]:
            assert isinstance(await outcome(nobody, method), AuthenticationError)


@asynchronous
async def test_priority_needs_its_role(gateway: GatewayHarness) -> None:
    keys = [key_of(gateway, Role.DRAW), key_of(gateway, Role.BATCH), key_of(gateway, Role.DRAW, Role.BATCH)]
    async with keyed(gateway, *keys) as (draw, batch, both):
        await create_job(draw)
        await create_job(batch, priority=PRIORITY_BATCH)
        await create_job(both)
        await create_job(both, priority=PRIORITY_BATCH)
        with pytest.raises(
            PermissionDeniedError, match="a job of priority batch needs the role admin or batch"
        ):
            await create_job(draw, priority=PRIORITY_BATCH)
        with pytest.raises(PermissionDeniedError, match="priority interactive"):
            await create_job(batch)


@asynchronous
async def test_method_that_is_not_in_the_table_is_refused(
    gateway: GatewayHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = key_of(gateway, Role.ADMIN)
    monkeypatch.delitem(ROLES, "/smalti.v1.ImageService/GetModel")
    async with keyed(gateway, key) as (admin,):
        assert isinstance(await outcome(admin, "GetModel"), PermissionDeniedError)


@asynchronous
async def test_server_without_a_gatekeeper_serves_nobody(gateway: GatewayHarness) -> None:
    servicer = ImageServicer(gateway.gateway)
    async with (
        await serve(
            lambda server: add_ImageServiceServicer_to_server(servicer, server),
            healthy=lambda: True,
            settings=RpcSettings(attempts=1, grace=0),
        ) as server,
        channel(server.address, RpcSettings(attempts=1)) as to_server,
    ):
        with pytest.raises(SmaltiError, match="internal error"):
            await create_job(ImageServiceStub(to_server))


@asynchronous
async def test_jobs_of_others_are_not_found(gateway: GatewayHarness) -> None:
    keys = [key_of(gateway, tenant="red"), key_of(gateway, tenant="blue"), key_of(gateway, Role.ADMIN)]
    async with keyed(gateway, *keys) as (red, blue, admin):
        job = await finished_job(red, gateway)
        waiting = await create_job(red)
        for name in ("GetJob", "CancelJob", "DeleteJob", "WatchJob", "DownloadImages"):
            kind: Any = getattr(image_pb2, f"{name}Request")
            for one in (job, waiting):
                with pytest.raises(JobNotFoundError) as refused:
                    await answer(getattr(blue, name)(kind(job_id=one.id)))
                assert str(refused.value) == str(JobNotFoundError(one.id))
        listed = await answer(blue.ListJobs(image_pb2.ListJobsRequest()))
        assert list(listed.jobs) == []
        with pytest.raises(PictureNotFoundError):
            await create_job(blue, from_picture(job))
        assert (await get_job(red, waiting.id)).state == job_pb2.JOB_STATE_QUEUED
        assert len((await answer(red.ListJobs(image_pb2.ListJobsRequest()))).jobs) == 2
        await create_job(red, from_picture(job))
        assert (await get_job(admin, job.id)).id == job.id
        assert len((await answer(admin.ListJobs(image_pb2.ListJobsRequest()))).jobs) == 3
        await answer(admin.CancelJob(image_pb2.CancelJobRequest(job_id=waiting.id)))
        assert (await get_job(red, waiting.id)).state == job_pb2.JOB_STATE_CANCELLED


def from_picture(job: job_pb2.Job) -> Callable[[Any], object]:
    picture = job_pb2.PictureReference(job_id=job.id, candidate=job.pictures[0].candidate)
    image = job_pb2.InitialImage(picture=picture, keep_rows=1)
    return lambda request: request.parameters.initial_image.CopyFrom(image)


@asynchronous
async def test_watcher_of_another_tenant_gets_nothing_of_a_read_that_is_shared(
    gateway: GatewayHarness,
) -> None:
    async with keyed(gateway, key_of(gateway, tenant="red"), key_of(gateway, tenant="blue")) as (red, blue):
        job = await create_job(red)
        watching = [each.WatchJob(image_pb2.WatchJobRequest(job_id=job.id)) for each in (red, blue)]
        first = await watching[0].read()
        assert first.job.id == job.id
        with pytest.raises(JobNotFoundError):
            await answer(watching[1])
        watching[0].cancel()


@asynchronous
async def test_request_id_belongs_to_its_tenant(gateway: GatewayHarness) -> None:
    same = "0f9d7ff4-7c6f-4a3c-9d52-0c4a3a3f3c11"
    async with keyed(gateway, key_of(gateway, tenant="red"), key_of(gateway, tenant="blue")) as (red, blue):
        one = await create_job(red, request_id=same)
        assert (await create_job(red, request_id=same)).id == one.id
        assert (await create_job(blue, request_id=same)).id != one.id


@asynchronous
async def test_revoked_key_is_refused_once_it_is_forgotten(gateway: GatewayHarness) -> None:
    key = key_of(gateway)
    now = 100.0
    async with keyed(gateway, key, elapsed=lambda: now) as (stub,):
        await create_job(stub)
        gateway.keys.revoke(gateway.keys.list()[0].id)
        now += KNOWN_SECONDS
        with pytest.raises(AuthenticationError, match="the key is unknown, mistyped or revoked"):
            await create_job(stub)


@asynchronous
async def test_audit_log_names_keys_and_never_has_them_or_prompts(gateway: GatewayHarness) -> None:
    key, other = key_of(gateway, tenant="red"), key_of(gateway, Role.ADMIN)
    with captured_log() as log:
        async with keyed(gateway, key, "sk-smalti-wrong", other) as (stub, stranger, admin):
            job = await create_job(stub, lambda request: request.parameters.MergeFrom(prompt("secret words")))
            with pytest.raises(AuthenticationError):
                await create_job(stranger)
            await get_job(admin, job.id)
    lines = [line for line in log.lines if line["logger"] == "smalti.audit"]
    kept = {each.tenant: each.id for each in gateway.keys.list()}
    assert [line["event"] for line in lines] == ["called", "refused", "called", "admin"]
    called, refused, _, act = lines
    assert called["who"] == f"key {kept['red']}"
    assert (called["tenant"], called["method"], called["roles"]) == ("red", "CreateImages", ["draw"])
    assert refused["reason"] == "UNAUTHENTICATED"
    assert (act["who"], act["method"], act["job"], act["owner"]) == (
        f"key {kept['default']}", "GetJob", job.id, "red",
    )  # fmt: skip
    text = log.getvalue()
    assert not any(secret in text for secret in (key, other, "sk-smalti-", "secret words"))


def prompt(text: str) -> job_pb2.ImageParameters:
    return job_pb2.ImageParameters(prompt=text)


@asynchronous
async def test_certificate_is_its_tenant(gateway: GatewayHarness, tmp_path: Path) -> None:
    gateway.keys.create("red", [Role.DRAW], new_tenant=True)
    authority = make_identity(tmp_path, "authority")
    server_side = make_identity(tmp_path, "server", signed_by=authority)
    certificates = {
        name: make_identity(
            tmp_path, name, signed_by=authority, host="127.0.0.9", uri=f"spiffe://test/{name}"
        )
        for name in ("red", "green", "web")
    }
    settings = RpcSettings(
        attempts=1,
        grace=0,
        tls_certificate=server_side.certificate_file,
        tls_key=server_side.key_file,
        tls_client_ca=authority.certificate_file,
    )
    gatekeeper = gateway.gatekeeper(
        Auth.MTLS,
        Auth.KEYS,
        names=principals_by_name("spiffe://test/red=red, spiffe://test/green=nobody:admin"),
    )
    servicer = ImageServicer(gateway.gateway)
    key = key_of(gateway, tenant="blue")

    async def call(name: str, method: str, key: str = "") -> SmaltiError | None:
        identity = certificates[name]
        own = RpcSettings(
            attempts=1,
            tls_ca=authority.certificate_file,
            tls_client_certificate=identity.certificate_file,
            tls_client_key=identity.key_file,
        )
        async with channel(server.address, own) as to_server:
            return await outcome(WithKey(ImageServiceStub(to_server), key), method)

    async with await serve(
        lambda server: add_ImageServiceServicer_to_server(servicer, server),
        healthy=lambda: True,
        settings=settings,
        authenticate=gatekeeper,
    ) as server:
        assert await call("red", "CreateImages") is None
        assert "nobody" in str(await call("green", "CreateImages"))
        assert isinstance(await call("web", "ListModels"), AuthenticationError)
        # A key says more than the certificate of whoever passes it on.
        assert await call("web", "CreateImages", key) is None
        assert isinstance(await call("red", "CreateImages", "sk-smalti-wrong"), AuthenticationError)
    tenants = {snapshot.job.tenant for snapshot in gateway.jobs.page(JobFilter(), after=None, limit=10)}
    assert tenants == {"blue", "red"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("name", "NAME=TENANT"),
        ("=red", "NAME=TENANT"),
        ("name=RED", "must be 1 to 64 characters"),
        ("name=red:king", "'king' must be one of draw, batch, admin"),
        ("name=red:web", "'web' must be one of"),
        ("name=red:", "'' must be one of"),
    ],
)
def test_mistakes_in_the_names_are_told(text: str, problem: str) -> None:
    with pytest.raises(InvalidInputError, match=f"^SMALTI_GATEWAY_AUTH_NAMES: .*{problem}"):
        principals_by_name(text)


def test_names_have_roles() -> None:
    found = principals_by_name("a.example=red:draw+admin,spiffe://x/y=blue")
    assert found["a.example"] == Principal(
        tenant="red", roles=frozenset({Role.DRAW, Role.ADMIN}), name="certificate a.example"
    )
    assert found["spiffe://x/y"].roles == {Role.DRAW, Role.BATCH}


@pytest.mark.parametrize(
    ("auth", "rpc", "ways"),
    [
        ("", {}, set()),
        ("none", {"host": "0.0.0.0"}, set()),
        ("keys", {}, {Auth.KEYS}),
        ("keys, jwt", {"host": "0.0.0.0"}, {Auth.KEYS, Auth.JWT}),
        ("", {"host": "0.0.0.0", "tls_client_ca": Path("ca.pem")}, {Auth.MTLS}),
    ],
)
def test_ways_follow_from_settings(
    auth: str, rpc: dict[str, Any], ways: set[Auth], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMALTI_AUTH", auth)
    assert chosen_ways(RpcSettings(**rpc)) == ways


@pytest.mark.parametrize(
    ("auth", "rpc", "problem"),
    [
        ("", {"host": "0.0.0.0"}, "^SMALTI_AUTH: is not set, and SMALTI_RPC_HOST=0.0.0.0 lets others call"),
        ("mtls", {}, "^SMALTI_RPC_TLS_CLIENT_CA: is not set, and SMALTI_AUTH has mtls"),
        ("none,keys", {}, "^SMALTI_AUTH: none cannot be combined"),
        ("password", {}, "^SMALTI_AUTH: 'password' must be one of none, keys, mtls, jwt"),
    ],
)
def test_undecided_and_wrong_settings_end_the_start(
    auth: str, rpc: dict[str, Any], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMALTI_AUTH", auth)
    with pytest.raises(InvalidInputError, match=problem):
        chosen_ways(RpcSettings(**rpc))


@asynchronous
async def test_header_of_another_form_is_refused(gateway: GatewayHarness) -> None:
    async with served(gateway, authenticate=gateway.gatekeeper(Auth.KEYS)) as stub:
        for header in ("Basic abc", "Bearer", "Bearer ", key_of(gateway)):
            call = stub.ListModels(image_pb2.ListModelsRequest(), metadata=(("authorization", header),))
            with pytest.raises(AuthenticationError, match="must have the form"):
                await answer(call)


@asynchronous
async def test_where_nobody_says_who_they_are_any_header_will_do(gateway: GatewayHarness) -> None:
    async with served(gateway) as stub:
        job = await create_job(WithKey(stub, "sk-anything"))
        assert (await get_job(stub, job.id)).id == job.id


@asynchronous
async def test_call_is_refused_before_its_request_has_arrived(gateway: GatewayHarness) -> None:
    async def never() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    servicer = ImageServicer(gateway.gateway)
    async with called(
        lambda server: add_ImageServiceServicer_to_server(servicer, server), gateway.gatekeeper(Auth.KEYS)
    ) as to_server:
        method: Any = to_server.stream_unary("/smalti.v1.ImageService/CreateImages")
        call = method(never())
        assert await asyncio.wait_for(call.code(), 5) is grpc.StatusCode.UNAUTHENTICATED
