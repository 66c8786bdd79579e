"""A gateway for tests: its clock stands still, what it sends is kept in a list, and a test plays the stages."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from google.rpc.status_pb2 import Status

from smalti.errors import StoreUnavailableError
from smalti.messages import EncodeTask, GenerateTask, Message, StageDone
from smalti.parameters import SamplingParameters
from smalti.registry.spec import ModelSpec
from smalti.rpc.errors import error_of_status
from smalti.services.gateway.database.clock import ManualClock
from smalti.services.gateway.database.connection import Database
from smalti.services.gateway.database.tables import Base
from smalti.services.gateway.gateway import Gateway
from smalti.services.gateway.jobs.repository import Snapshot
from smalti.services.gateway.jobs.spec import JobSpec
from smalti.services.gateway.settings import GatewaySettings
from smalti.storage import MemoryStore, ObjectRef, ObjectStore
from smalti.testing.publisher import MemoryPublisher
from smalti.testing.stages import FakeStages


class GatewayHarness:
    """A gateway whose threads do not run: a test calls what they would call."""

    def __init__(
        self, database: Database, spec: ModelSpec, *, store: ObjectStore | None = None, **settings: Any
    ) -> None:
        """Puts it together.

        Args:
            database: where jobs are.
            spec: the model.
            store: None is one in memory.
            settings: those that are not as usual.
        """
        self.clock = ManualClock()
        self.publisher = MemoryPublisher()
        self.store = store or MemoryStore()
        self.gateway = Gateway(
            database,
            self.store,
            self.publisher,
            spec,
            GatewaySettings(**settings),
            clock=self.clock,
            expiry_days=7,
        )
        self.jobs = self.gateway.jobs
        self.stages = FakeStages(self.store, spec.tokens)

    def create(self, prompt: str = "a cat", **changes: Any) -> str:
        """Accepts a job of 8 candidates, a moment after the one before; returns its id."""
        self.clock.advance(1e-6)
        return self.jobs.create(order(prompt, **changes)).job.id

    def get(self, job_id: str) -> Snapshot:
        """Returns a job as it is, with all that was heard of it."""
        self.gateway.ledger.store()
        return self.jobs.get(job_id)

    def state(self, job_id: str) -> str:
        """Returns the state of a job."""
        return self.get(job_id).job.state.value

    def send(self) -> list[EncodeTask]:
        """Lets the gateway send what it would, and says that the broker has it."""
        self.gateway.send()
        self.gateway.ledger.store()
        return self.sent_tasks()

    def sent_tasks(self) -> list[EncodeTask]:
        """Returns what the gateway has sent since the last call."""
        sent = self.publisher.take()
        return [message for message in sent if isinstance(message, EncodeTask)]

    def tell(self, *events: Message) -> None:
        """Tells the gateway of events."""
        for event in events:
            self.gateway.events.take(event)

    def work(self) -> None:
        """Sends and does all the work there is."""
        while tasks := self.send():
            for task in tasks:
                self.tell(*self.stages.run(task))

    def pass_time(self, seconds: float) -> None:
        """Lets time pass, and does what is due then."""
        self.clock.advance(seconds)
        self.gateway.ledger.store()
        self.gateway.sweep()
        self.gateway.tidy()

    def objects(self) -> list[str]:
        """Returns the names of the objects that are there, without their jobs' folders."""
        return [info.key.split("/", 2)[2] for info in self.store.objects()]

    def close(self) -> None:
        """Ends it; the database stays open."""
        self.gateway.threads.shutdown()
        self.gateway._markers.shutdown()
        self.gateway.fan_in.close()


def order(prompt: str = "a cat", **changes: Any) -> JobSpec:
    """Returns an order of 8 candidates, of which the best 3 are wanted."""
    usual: dict[str, Any] = {
        "seed": 7,
        "sampling": SamplingParameters(),
        "time_limit": 1000.0,
        "retention": 5000.0,
        "n": 3,
        "candidates": 8,
    }
    return JobSpec(prompt=prompt, **{**usual, **changes})


def sqlite_database(folder: Path, **options: Any) -> Database:
    """Returns a new database in a folder."""
    database = Database(f"sqlite:///{folder / 'gateway.sqlite3'}", **options)
    database.migrate()
    return database


@contextmanager
def emptied(database: Database) -> Iterator[Database]:
    """Lends a database that others have used, without what they left."""
    database.migrate()
    with database.write() as session:
        for table in reversed(Base.metadata.sorted_tables):
            session.execute(table.delete())
    yield database
    database.close()


MakeGateway = Callable[..., GatewayHarness]
"""Makes gateways on one database; takes settings."""


def failure(snapshot: Snapshot) -> Exception:
    """Returns why a job has failed, as its user sees it."""
    assert snapshot.job.error is not None
    return error_of_status(Status.FromString(snapshot.job.error))


def begun(gateway: GatewayHarness, **changes: Any) -> tuple[str, EncodeTask, tuple[GenerateTask, ...]]:
    """Accepts a job and encodes its prompt."""
    job = gateway.create(**changes)
    (task,) = gateway.send()
    generates, event = gateway.stages.encode(task)
    gateway.tell(event)
    return job, task, generates


def finish_chunk(gateway: GatewayHarness, generate: GenerateTask) -> StageDone:
    """Draws, decodes and ranks a chunk; returns the last event, which was not told."""
    decode, drawn = gateway.stages.generate(generate)
    rank, decoded = gateway.stages.decode(decode)
    gateway.tell(drawn, decoded)
    return gateway.stages.rank(rank)


class AwayStore(MemoryStore):
    """A store that can be away, or full."""

    away = False
    """Nothing is answered."""
    full = False
    """Nothing more is taken."""

    def stat(self, key: str) -> Any:
        """See `ObjectStore`."""
        if self.away:
            raise StoreUnavailableError("it is away")
        return super().stat(key)

    def get(self, key: str, *, sha256: str | None = None) -> bytes:
        """See `ObjectStore`."""
        if self.away:
            raise StoreUnavailableError("it is away")
        return super().get(key, sha256=sha256)

    def put(self, key: str, content: bytes, *, content_type: str = "") -> ObjectRef:
        """See `ObjectStore`."""
        if self.away or self.full:
            raise StoreUnavailableError("it is away or full")
        return super().put(key, content)

    def check(self) -> None:
        """See `ObjectStore`."""
        self.put("writable", b"yes")
