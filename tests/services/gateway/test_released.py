"""A database of the last release is migrated, its jobs go on, and its gateway can be started on it again.

The code of the release runs in child processes: `harness.gateway` of its tree on the same database and objects.
"""

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from pydantic import SecretStr
from sqlalchemy import select

from harness.gateway import GatewayHarness, finish_chunk
from harness.releases import run_release
from harness.servers import PostgresServer
from smalti.errors import RequestIdReusedError
from smalti.messages import GenerateTask, parse
from smalti.registry.folder import ModelFolder
from smalti.registry.spec import ModelSpec
from smalti.services.gateway.database.connection import Database
from smalti.services.gateway.database.tables import Tenant
from smalti.services.gateway.identity import Role, TenantRepository
from smalti.storage import StoreSettings, open_store
from tests.services.gateway.conftest import DATABASES

pytestmark = pytest.mark.process

BEGIN: Final = """
import json, sys
from pathlib import Path
from pydantic import SecretStr
from harness.gateway import GatewayHarness, encoded_job, finish_chunk
from smalti.messages import FailureReason
from smalti.registry.folder import ModelFolder
from smalti.registry.spec import ModelSpec
from smalti.services.gateway.database.connection import Database
from smalti.storage import StoreSettings, open_store
url, store, model, now = sys.argv[1:5]
database = Database(url)
database.migrate()
gateway = GatewayHarness(
    database,
    ModelSpec.load(ModelFolder.open(Path(model))),
    store=open_store(StoreSettings(url=SecretStr(store))),
)
gateway.clock.advance(float(now) - gateway.clock())
jobs = {}
messages = []
"""
END: Final = """
states = {name: gateway.state(job) for name, job in jobs.items()}
print(json.dumps({"jobs": jobs, "states": states, "messages": messages, "clock": gateway.clock()}))
gateway.close()
database.close()
"""
"""Around what the gateway of the release does."""
MAKE: Final = """
jobs["succeeded"] = gateway.create("it succeeds", labels={"set": "old"})
gateway.run_jobs()
jobs["cancelled"] = gateway.create("it is cancelled")
gateway.cancel(jobs["cancelled"])
jobs["failed"], task, generates = encoded_job(gateway, prompt="it fails")
gateway.handle(generates[0].failed(FailureReason.INVALID, "prompt: it cannot be drawn"))
jobs["expired"] = gateway.create("it expires", time_limit=1.0)
gateway.pass_time(2)
jobs["running"], _, generates = encoded_job(gateway, prompt="it runs")
gateway.handle(finish_chunk(gateway, generates[0]))
messages.append(generates[1].to_json())
jobs["queued"] = gateway.create(
    "it waits", request_id="11111111-1111-4111-8111-111111111111", request_hash="a" * 64
)
"""
ENDED: Final = {"succeeded", "cancelled", "failed", "expired"}


@dataclass
class Place:
    """A database without tables and a folder of objects, for gateways of both versions."""

    url: str
    store: str
    model: ModelFolder
    now: float = 1_800_000_000.0

    def release(self, code: str) -> dict[str, Any]:
        """Lets a gateway of the release do something; returns its jobs by name, their states, and its messages."""
        arguments = [self.url, self.store, str(self.model.path), str(self.now)]
        told: dict[str, Any] = run_release(BEGIN + code + END, arguments)
        self.now = told["clock"] + 1.0
        return told

    @contextmanager
    def present(self) -> Iterator[GatewayHarness]:
        """Opens a gateway of this version."""
        with closing(Database(self.url)) as database:
            database.migrate()
            store = open_store(StoreSettings(url=SecretStr(self.store)))
            gateway = GatewayHarness(database, ModelSpec.load(self.model), store=store)
            gateway.clock.advance(self.now - gateway.clock())
            yield gateway
            self.now = gateway.clock() + 1.0
            gateway.close()


@pytest.fixture(params=DATABASES)
def place(request: pytest.FixtureRequest, tmp_path: Path, tiny: ModelFolder) -> Iterator[Place]:
    store = (tmp_path / "store").as_uri()
    if request.param == "sqlite":
        yield Place(f"sqlite:///{tmp_path / 'jobs.sqlite3'}", store, tiny)
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    if not server.running:
        server.start()
    with server.new_database() as url:
        yield Place(url, store, tiny)


def counters(gateway: GatewayHarness) -> tuple[int, int]:
    """Returns the open and the stored jobs of the default tenant, as they are counted."""
    with gateway.gateway.context.database.read() as session:
        row = session.scalars(select(Tenant)).one()
        return row.open_jobs, row.stored_jobs


def test_jobs_go_on_with_the_next_version_and_with_the_release_again(place: Place) -> None:
    made = place.release(MAKE)
    jobs: dict[str, str] = made["jobs"]
    assert made["states"] == {name: name for name in jobs}
    with place.present() as gateway:
        assert {name: gateway.state(job) for name, job in jobs.items()} == {name: name for name in jobs}
        assert counters(gateway) == (2, 6)
        assert gateway.get(jobs["succeeded"]).job.labels == {"set": "old"}
        assert [picture.candidate for picture in gateway.get(jobs["succeeded"]).pictures] == [7, 6, 5]
        # A client repeats the call that it made to the release.
        again = "11111111-1111-4111-8111-111111111111"
        found = gateway.jobs.find_request(again, "a" * 64)
        assert found is not None
        assert found.job.id == jobs["queued"]
        with pytest.raises(RequestIdReusedError):
            gateway.jobs.find_request(again, "b" * 64)
        (text,) = made["messages"]
        outstanding = parse(text, now=gateway.clock())
        assert isinstance(outstanding, GenerateTask)
        gateway.handle(finish_chunk(gateway, outstanding))
        assert gateway.state(jobs["running"]) == "succeeded"
        jobs["from the next version"] = gateway.create("it is from the next version")
        jobs["begun"] = gateway.create("it is begun by the next version")
        (begun,) = (task for task in gateway.send() if task.job == jobs["begun"])
        gateway.handle(gateway.stages.encode(begun)[1])
        place.now = gateway.clock()
    # Back: what the newer gateway has accepted, begun and ended is known, and goes on.
    names = json.dumps(jobs)
    back = place.release(
        f"""
jobs |= {names}
first = {{name: gateway.state(job) for name, job in jobs.items()}}
assert first["running"] == "succeeded" and first["begun"] == "running", first
# The leases of messages that went to the newer gateway's workers expire, after those that were extended at the start.
for _ in range(2):
    gateway.pass_time(200)
    gateway.send()
    gateway.sent_tasks()
gateway.pass_time(300)
gateway.run_jobs()
gateway.delete(jobs.pop("failed"))
jobs["new"] = gateway.create("it is from the release again")
"""
    )
    assert back["states"] == {
        **dict.fromkeys(("succeeded", "running", "queued", "from the next version", "begun"), "succeeded"),
        **{name: name for name in ("cancelled", "expired")},
        "new": "queued",
    }
    with place.present() as gateway:
        gateway.jobs.recount()  # The release does not count.
        assert counters(gateway) == (1, 8)
        gateway.run_jobs()
        assert gateway.state(back["jobs"]["new"]) == "succeeded"
        assert counters(gateway) == (0, 8)


@pytest.mark.parametrize("with_key", [True, False])
def test_release_does_not_start_where_there_are_tenants(place: Place, with_key: bool) -> None:
    with place.present() as gateway:
        gateway.keys.create("default", [Role.DRAW])
    place.release("")
    with place.present() as gateway:
        if with_key:
            gateway.keys.create("second", [Role.DRAW], new_tenant=True)
        else:
            TenantRepository(gateway.gateway.context.database, gateway.clock).create("second")
    refused = r"and this version knows 0007; start a newer gateway \(one that knows 0008"
    with pytest.raises(AssertionError, match=refused):
        place.release("")
