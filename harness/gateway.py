"""A gateway for tests: its clock is manual, its messages stay in memory, and the test acts as the stages."""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from google.rpc.status_pb2 import Status

from harness.objects import name_of
from harness.waiting import wait_until
from smalti.errors import StoreUnavailableError
from smalti.messages import DEFAULT_VERSION, EncodeTask, GenerateTask, Message, RefineTask, StageDone
from smalti.parameters import SamplingParameters
from smalti.registry.spec import ModelSpec
from smalti.rpc.errors import error_of_status
from smalti.rpc.settings import RpcSettings
from smalti.services.gateway.database.clock import Clock, ManualClock, uptime
from smalti.services.gateway.database.connection import Database
from smalti.services.gateway.database.presence import Presence
from smalti.services.gateway.database.rows import RowFeed
from smalti.services.gateway.database.tables import DEFAULT_TENANT, Base, Tenant
from smalti.services.gateway.gateway import MARKER_SECONDS, Gateway
from smalti.services.gateway.identity import Evidence, Gatekeeper, KeyRepository
from smalti.services.gateway.jobs.context import GatewayContext
from smalti.services.gateway.jobs.repository import JobSnapshot
from smalti.services.gateway.jobs.spec import JobSpec
from smalti.services.gateway.models import Catalogue, ModelCard
from smalti.services.gateway.policy.content_policy import ContentPolicy
from smalti.services.gateway.settings import GatewaySettings
from smalti.settings import Auth
from smalti.storage import MemoryStore, ObjectRef, ObjectStore
from smalti.testing.publisher import MemoryPublisher
from smalti.testing.stages import FakeStages

LIMIT = 30.0
"""Time in seconds that the database has to find a key."""


class GatewayHarness:
    """A gateway whose threads do not run: the test calls what they would call."""

    def __init__(
        self,
        database: Database,
        spec: ModelSpec,
        *,
        store: ObjectStore | None = None,
        clock: ManualClock | None = None,
        elapsed: Clock = uptime,
        presence: Presence | None = None,
        rows: RowFeed | None = None,
        write: int = DEFAULT_VERSION,
        **settings: Any,
    ) -> None:
        """Creates the gateway.

        Args:
            database: an empty database with tables.
            spec: the model.
            store: the object store; None creates one in memory.
            clock: the clock; None creates one that stands still.
            elapsed: returns seconds that only grow.
            presence: the gateway among others that share the database; the test starts it.
            rows: tells the others of rows; the test starts it.
            write: the version of the messages that it writes.
            settings: values that differ from the defaults.
        """
        self.clock = clock or ManualClock()
        self.publisher = MemoryPublisher()
        self.store = store or MemoryStore()
        made = GatewaySettings(**settings)
        self.policy = ContentPolicy.load(made, RpcSettings(attempts=1))
        context = GatewayContext(
            database=database,
            store=self.store,
            publisher=self.publisher,
            catalogue=Catalogue(database, ModelCard.from_spec(spec), clock=self.clock, write=write),
            settings=made,
            policy=self.policy,
            clock=self.clock,
            elapsed=elapsed,
            presence=presence,
            rows=rows,
            expiry_days=7,
        )
        self.gateway = Gateway(context)
        self.job_events = context.events
        self.jobs = self.gateway.jobs
        self.keys = KeyRepository(database, self.clock)
        self.stages = FakeStages(self.store, spec.tokens)
        self.refine_tasks: list[RefineTask] = []
        """Messages for the refiner that the gateway has sent."""

    def gatekeeper(self, *ways: Auth, **options: Any) -> Gatekeeper:
        """Returns what finds out who calls; without `ways`, everybody may do everything."""
        elapsed = options.pop("elapsed", uptime)
        evidence = Evidence(ways=frozenset(ways), **options)
        return Gatekeeper(
            evidence, keys=self.keys, threads=self.gateway.threads, seconds=LIMIT, elapsed=elapsed
        )

    def create(self, prompt: str = "a cat", **changes: Any) -> str:
        """Accepts a job of 8 candidates, a microsecond after the previous one; returns its id."""
        self.clock.advance(1e-6)
        return self.jobs.create(job_spec(prompt, **changes)).job.id

    def get(self, job_id: str) -> JobSnapshot:
        """Returns a job after all collected progress is stored."""
        self.gateway.progress.store()
        return self.jobs.get(job_id)

    def cancel(self, job_id: str) -> JobSnapshot:
        """Cancels a job and notifies the stages, as the call for it does."""
        snapshot = self.jobs.cancel(job_id)
        if marking := self.gateway.mark(snapshot):
            wait([marking], MARKER_SECONDS)
        return snapshot

    def delete(self, job_id: str) -> None:
        """Cancels a job if it is open, and deletes it with its pictures."""
        self.cancel(job_id)
        self.jobs.delete(job_id)

    def state(self, job_id: str) -> str:
        """Returns the state of a job."""
        return self.get(job_id).job.state.value

    def send(self) -> list[EncodeTask]:
        """Lets the gateway send what is due; returns the messages, which the broker has confirmed."""
        self.gateway.send()
        self.gateway.progress.store()
        return self.sent_tasks()

    def sent_tasks(self) -> list[EncodeTask]:
        """Returns the messages that the gateway has sent since the last call."""
        sent = self.publisher.take()
        self.refine_tasks += [message for message in sent if isinstance(message, RefineTask)]
        return [message for message in sent if isinstance(message, EncodeTask)]

    def send_refining(self) -> list[RefineTask]:
        """Lets the gateway send what is due; returns the messages for the refiner."""
        assert self.send() == []
        sent, self.refine_tasks = self.refine_tasks, []
        return sent

    def handle(self, *events: Message) -> None:
        """Lets the gateway handle events of the stages."""
        for event in events:
            self.gateway.events.apply(event)

    def run_jobs(self) -> None:
        """Runs all jobs to their end."""
        while (encode_tasks := self.send()) or self.refine_tasks:
            refine_tasks, self.refine_tasks = self.refine_tasks, []
            for encode in encode_tasks:
                self.handle(*self.stages.run(encode))
            for refine in refine_tasks:
                self.handle(self.stages.refine(refine))

    def pass_time(self, seconds: float) -> None:
        """Advances the clock, and does what is due then."""
        self.clock.advance(seconds)
        self.gateway.progress.store()
        self.gateway.sweep()
        self.gateway.run_store_tasks()

    def objects(self) -> list[str]:
        """Returns the names of all objects, without the folders of their jobs."""
        return [name_of(info.key.split("/", 2)[2]) for info in self.store.objects()]

    def close(self) -> None:
        """Ends the threads; the database stays open."""
        self.gateway.close_threads()


def job_spec(prompt: str = "a cat", **changes: Any) -> JobSpec:
    """Returns a job of 8 candidates and 3 pictures."""
    defaults: dict[str, Any] = {
        "seed": 7,
        "sampling": SamplingParameters(),
        "time_limit": 1000.0,
        "retention": 5000.0,
        "n": 3,
        "candidates": 8,
    }
    return JobSpec(prompt=prompt, **{**defaults, **changes})


def sqlite_database(folder: Path, **options: Any) -> Database:
    """Creates a database in a folder, or opens the one that is there."""
    file = folder / "gateway.sqlite3"
    if not file.exists():
        # All steps of the schema cost a fifth of a second; a copy of their outcome costs nothing.
        file.write_bytes(_migrated_sqlite())
    database = Database(f"sqlite:///{file}", **options)
    database.migrate()
    return database


@cache
def _migrated_sqlite() -> bytes:
    """Returns the content of a SQLite file that has all tables."""
    with tempfile.TemporaryDirectory(prefix="smalti-tests-") as folder:
        file = Path(folder) / "gateway.sqlite3"
        with closing(Database(f"sqlite:///{file}")) as database:
            database.migrate()
        # Closing has emptied the write-ahead log into the file.
        assert list(Path(folder).iterdir()) == [file]
        return file.read_bytes()


@contextmanager
def emptied_database(database: Database) -> Iterator[Database]:
    """Empties a database that other tests have used, and closes it after the block."""
    database.migrate()
    with database.write() as session:
        for table in reversed(Base.metadata.sorted_tables):
            session.execute(table.delete())
        session.add(Tenant(id=DEFAULT_TENANT))
    yield database
    database.close()


MakeGateway = Callable[..., GatewayHarness]
"""Creates gateways on one database; takes settings."""


def failure(snapshot: JobSnapshot) -> Exception:
    """Returns the error of a failed job as a client sees it."""
    assert snapshot.job.error is not None
    return error_of_status(Status.FromString(snapshot.job.error))


def encoded_job(gateway: GatewayHarness, **changes: Any) -> tuple[str, EncodeTask, tuple[GenerateTask, ...]]:
    """Creates a job and encodes its prompt; returns its id, its message, and the messages that follow."""
    job = gateway.create(**changes)
    (task,) = gateway.send()
    generates, event = gateway.stages.encode(task)
    gateway.handle(event)
    return job, task, generates


def finish_chunk(gateway: GatewayHarness, generate: GenerateTask) -> StageDone:
    """Runs a chunk to its end; returns the ranker's event, which the gateway has not handled yet."""
    decode, generated = gateway.stages.generate(generate)
    rank, decoded = gateway.stages.decode(decode)
    gateway.handle(generated, decoded)
    return gateway.stages.rank(rank)


Counts = Counter[tuple[str, str, str]]
"""How often somebody has given an answer about a subject."""


def counted(gateway: GatewayHarness) -> Counts:
    """Counts the answers of the policy from now on."""
    counts: Counts = Counter()

    def count(subject: Any, by: str, outcome: str, amount: int) -> None:
        counts[subject.value, by, outcome] += amount

    gateway.policy.count = count
    return counts


def ended(gateway: GatewayHarness, job: str) -> JobSnapshot:
    """Waits until a job has ended; returns it."""
    wait_until(lambda: gateway.state(job) not in ("queued", "running"))
    return gateway.get(job)


def candidates(gateway: GatewayHarness, job: str) -> list[int]:
    """Waits until a job has ended; returns the candidates that are its pictures, the best first."""
    return [picture.candidate for picture in ended(gateway, job).pictures]


class FaultyStore(MemoryStore):
    """A store that can be unavailable or full."""

    unavailable = False
    """Every call fails."""
    full = False
    """Every write fails."""

    def stat(self, key: str) -> Any:  # noqa: D102
        if self.unavailable:
            raise StoreUnavailableError("the store is unavailable")
        return super().stat(key)

    def get(self, key: str, *, sha256: str | None = None) -> bytes:  # noqa: D102
        if self.unavailable:
            raise StoreUnavailableError("the store is unavailable")
        return super().get(key, sha256=sha256)

    def put(self, key: str, content: bytes, *, content_type: str = "") -> ObjectRef:  # noqa: D102
        if self.unavailable or self.full:
            raise StoreUnavailableError("the store is unavailable or full")
        return super().put(key, content)

    def check(self) -> None:  # noqa: D102
        self.put("writable", b"yes")
