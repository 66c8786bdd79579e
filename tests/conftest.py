"""What the tests share: shapes checked at run time, the golden values, the tiny model."""

import gc
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.paths import GOLDEN, SAMPLES

# Compiled programs are shared by all processes of a test run, and by the next run: compiling takes most of the time.
os.environ.setdefault("SMALTI_COMPILATION_CACHE", str(Path(tempfile.gettempdir()) / "smalti-tests-compiled"))

# What is drawn in this process must not be drawn at somebody's gateway.
os.environ.pop("SMALTI_SERVER", None)

import pytest
from jaxtyping import install_import_hook

# Before anything of these is imported: every shape in a signature is then checked on every call.
SHAPED = [
    "smalti.engines",
    *(f"smalti.models.{name}" for name in ("bart", "clip", "layers", "text", "vqgan")),
]
install_import_hook(SHAPED, "beartype.beartype")

from harness.queue import QueueHarness, clear, settings_for  # noqa: E402
from harness.servers import PostgresServer, RabbitMQServer, S3Server, Server, ValkeyServer  # noqa: E402
from smalti.engines.compilation import use_compilation_cache  # noqa: E402
from smalti.pipeline import Pipeline  # noqa: E402
from smalti.registry.folder import ModelFolder  # noqa: E402
from smalti.registry.spec import ModelSpec  # noqa: E402
from smalti.testing.model import tiny_model  # noqa: E402
from smalti.testing.words import SMALL_WORLD  # noqa: E402

if TYPE_CHECKING:
    from harness.gateway import GatewayHarness, MakeGateway
    from smalti.services.gateway.database.connection import Database

use_compilation_cache()


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of reference values."""
    return GOLDEN


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """The tiny model's folder; not to be changed."""
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny", seed=1)


@pytest.fixture(scope="session")
def worded(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """The folder of a tiny model that knows the words of a small world; not to be changed."""
    return tiny_model(tmp_path_factory.mktemp("models") / "worded", seed=1, words=SMALL_WORLD)


@pytest.fixture(scope="session")
def pipeline(tiny: ModelFolder) -> Iterator[Pipeline]:
    """The tiny model, loaded."""
    loaded = Pipeline.load(tiny.path)
    yield loaded
    loaded.generator.close()


@pytest.fixture(scope="session")
def valkey() -> Iterator[ValkeyServer]:
    """A broker; a test that stops it starts it again."""
    with ValkeyServer() as server:
        yield server


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[RabbitMQServer]:
    """A broker; a test that stops it starts it again."""
    with RabbitMQServer() as server:
        yield server


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """An object store; a test that stops it starts it again."""
    with S3Server() as server:
        yield server


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A database; a test that stops it starts it again."""
    with PostgresServer() as server:
        yield server


# Where RabbitMQ is not installed, CI fails, and anybody else tests what they have.
BROKERS = ["valkey", "rabbitmq"] if RabbitMQServer.installed() or "CI" in os.environ else ["valkey"]


@pytest.fixture(params=BROKERS)
def broker(request: pytest.FixtureRequest) -> Server:
    """A broker of each kind, without queues."""
    server: Server = request.getfixturevalue(request.param)
    if not server.running:
        server.start()
    clear(settings_for(server))
    return server


DATABASES = ["sqlite", "postgres"] if PostgresServer.programs() or "CI" in os.environ else ["sqlite"]


@pytest.fixture(params=DATABASES)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator["Database"]:
    """A gateway's database of each kind, empty."""
    from harness.gateway import emptied_database, sqlite_database
    from smalti.services.gateway.database.connection import Database

    if request.param == "sqlite":
        made = sqlite_database(tmp_path)
        yield made
        made.close()
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    if not server.running:
        server.start()
    with emptied_database(Database(server.url)) as lent:
        yield lent


@pytest.fixture
def queue_harness(broker: Server) -> Iterator[QueueHarness]:
    """A publisher, and a worker once it is asked for."""
    made = QueueHarness(settings_for(broker))
    yield made
    made.stop()


@pytest.fixture(scope="session")
def world_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the world of `tests/data`; not to be changed."""
    from smalti.training.data.world.building import build
    from smalti.training.data.world.description import load_description

    out = tmp_path_factory.mktemp("data") / "sample"
    build(out, SAMPLES / "packages", load_description(SAMPLES / "world.json"), 64, with_pictograms=False)
    return out


@pytest.fixture(scope="session")
def runs(world_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of runs `tokenizer`, `generator` and `ranker` of three steps each; not to be changed."""
    from smalti.cli import run

    folder = tmp_path_factory.mktemp("runs")
    tokenizer = str(folder / "tokenizer")
    options = {"tokenizer": [], "generator": ["--tokenizer", tokenizer], "ranker": ["--vqgan", tokenizer]}
    for name, more in options.items():
        paths = ["--config", SAMPLES / "runs" / f"{name}.toml", "--data", world_data, "--out", folder / name]
        assert run(["train", name, *map(str, paths), *more]) == 0
    return folder


@pytest.fixture(scope="module")
def orbax_leftovers() -> Iterator[None]:
    """Collects what orbax leaves behind when it cannot write or read: coroutines that complain when they go away.

    A module that uses it ignores `pytest.PytestUnraisableExceptionWarning`; so the complaint reaches no other test.
    """
    yield
    gc.collect()


@pytest.fixture
def make_gateway(database: "Database", tiny: ModelFolder) -> Iterator["MakeGateway"]:
    """Makes gateways on one database."""
    from harness.gateway import GatewayHarness

    made: list[GatewayHarness] = []

    def another(**settings: Any) -> GatewayHarness:
        made.append(GatewayHarness(database, ModelSpec.load(tiny), **settings))
        return made[-1]

    yield another
    for each in made:
        each.close()


@pytest.fixture
def gateway(make_gateway: "MakeGateway") -> "GatewayHarness":
    """A gateway whose threads do not run."""
    return make_gateway()
