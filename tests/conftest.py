"""Fixtures and settings for all tests: shape checks, marks, golden values, the tiny model, servers."""

import contextlib
import faulthandler
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import psutil
import pytest

from harness.paths import GOLDEN
from harness.shapes import check_annotations

if TYPE_CHECKING:
    from harness.servers import PostgresServer, S3Server, ValkeyServer
    from smalti.pipeline import Pipeline
    from smalti.queue import BrokerPublisher
    from smalti.registry.folder import ModelFolder

# Containers often switch off the cache of bytecode. Then each of the many processes of a test run, and the next run,
# would compile the whole package again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Two processes of a test run share two cores, so a pool of threads in each only costs time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# All processes of a test run, and the next run, share compiled programs: compiling takes most of the time.
COMPILED = str(Path(tempfile.gettempdir()) / "smalti-tests-compiled")
os.environ.setdefault("SMALTI_COMPILATION_CACHE", COMPILED)
# For JAX where no engine is started: in this process, and in scripts that tests run.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", COMPILED)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

# Not the folder of the user who runs the tests.
os.environ.setdefault("SMALTI_BROKER_JOURNAL", str(Path(tempfile.gettempdir()) / "smalti-tests-workers"))

# Tests generate in this process, even if a gateway is set.
os.environ.pop("SMALTI_SERVER", None)

# Inherited by every process that a test starts, so that one that outlives its parent is still found.
ME = os.environ["PYTEST_PROCESS"] = str(os.getpid())

# The same examples in every run, on every machine, however busy it is; nothing is kept between runs.
hypothesis.settings.register_profile(
    "smalti",
    derandomize=True,
    deadline=None,
    max_examples=60,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("smalti")

# Before any module with shapes is imported.
check_annotations()

SERVERS = {"valkey", "rabbitmq", "s3", "postgres", "system"}
"""Fixtures that start real servers; a parameter that chooses one has the fixture's name."""
GRACE = 10.0
"""Seconds that processes have to end after the last test."""
EXIT_SECONDS = 120.0
"""Seconds that the interpreter has to exit after the last test."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests that use a server's fixture as `server`; other tests that start servers are marked by hand."""
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        parameters = {value for value in _parameters(item) if isinstance(value, str)}
        if (fixtures | parameters) & SERVERS:
            item.add_marker("server")


def _parameters(item: pytest.Item) -> list[object]:
    specification = getattr(item, "callspec", None)
    return list(specification.params.values()) if specification else []


def pytest_unconfigure() -> None:
    """Ends a run that hangs at exit, for instance on a thread that waits for ever, and prints every thread's stack."""
    faulthandler.dump_traceback_later(EXIT_SECONDS, exit=True, file=sys.__stderr__ or 2)


@pytest.fixture(scope="session", autouse=True)
def _no_process_is_left_over() -> Iterator[None]:
    """Fails when a process that a test started outlives the last test; names that test and kills the process."""
    yield
    _, left = psutil.wait_procs(_started_here(), timeout=GRACE)
    found = []
    for process in left:
        with contextlib.suppress(psutil.Error):
            test = process.environ().get("PYTEST_CURRENT_TEST", "?")
            found.append(f"{test}: {' '.join(process.cmdline())}")
            process.kill()
    assert not found


def _started_here() -> list[psutil.Process]:
    """Returns the processes that this one has started, directly or not, and that still run."""
    found = set(psutil.Process().children(recursive=True))
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get("PYTEST_PROCESS") == ME:
                found.add(process)
    return [process for process in found if not _may_stay(process)]


def _may_stay(process: psutil.Process) -> bool:
    try:
        # The tracker of `multiprocessing` and the readers of pictures end with this process.
        command = " ".join(process.cmdline())
        ours = process.ppid() == os.getpid() and "picture_files/child.py" in command
        return (
            ours or "multiprocessing.resource_tracker" in command or process.status() == psutil.STATUS_ZOMBIE
        )
    except psutil.NoSuchProcess:
        return True


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of reference values."""
    return GOLDEN


# The fixtures import what they need when they are used: the process that only hands out tests to others needs nothing,
# and JAX and torch take many seconds.


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> "ModelFolder":
    """The tiny model's folder; tests must not change it."""
    from smalti.testing.model import tiny_model

    return tiny_model(tmp_path_factory.mktemp("models") / "tiny", seed=1)


@pytest.fixture(scope="session")
def refining(tmp_path_factory: pytest.TempPathFactory) -> "ModelFolder":
    """The folder of the tiny model with a refiner; tests must not change it."""
    from smalti.testing.model import tiny_model

    return tiny_model(tmp_path_factory.mktemp("models") / "tiny", seed=1, with_refiner=True)


@pytest.fixture(scope="session")
def worded(tmp_path_factory: pytest.TempPathFactory) -> "ModelFolder":
    """The folder of a tiny model with a refiner, which knows the words of a small world; tests must not change it."""
    from smalti.testing.model import tiny_model
    from smalti.testing.words import SMALL_WORLD

    return tiny_model(
        tmp_path_factory.mktemp("models") / "worded", seed=1, words=SMALL_WORLD, with_refiner=True
    )


@pytest.fixture(scope="session")
def pipeline(tiny: "ModelFolder") -> Iterator["Pipeline"]:
    """The tiny model, loaded."""
    from smalti.pipeline import Pipeline

    with Pipeline.load(tiny.path) as loaded:
        yield loaded


@pytest.fixture(scope="session")
def valkey() -> Iterator["ValkeyServer"]:
    """A broker; a test that stops it starts it again."""
    from harness.servers import ValkeyServer

    with ValkeyServer() as server:
        yield server


@pytest.fixture
def publisher(valkey: "ValkeyServer") -> Iterator["BrokerPublisher"]:
    """A publisher to the broker, whose queues are empty."""
    from harness.queue import clear, settings_for
    from smalti.queue import BrokerPublisher

    clear(settings_for(valkey))
    opened = BrokerPublisher(settings_for(valkey))
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def s3() -> Iterator["S3Server"]:
    """An object store; a test that stops it starts it again."""
    from harness.servers import S3Server

    with S3Server() as server:
        yield server


@pytest.fixture(scope="session")
def postgres() -> Iterator["PostgresServer"]:
    """A database; a test that stops it starts it again."""
    from harness.servers import PostgresServer

    with PostgresServer() as server:
        yield server
