"""Backup and restore by the commands of `docs/backup.md`, with work under way, on real servers."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from harness.objects import store_settings_for
from harness.paths import ROOT
from harness.servers import HOST, PostgresServer, S3Server, ValkeyServer
from harness.service_process import ServiceProcess
from harness.waiting import wait_until
from smalti import Client
from smalti.errors import JobNotFoundError
from smalti.registry.folder import ModelFolder
from smalti.storage import open_store
from smalti.v1.batch_pb2 import BATCH_STATE_RUNNING, BATCH_STATE_SUCCEEDED, Batch
from smalti.v1.job_pb2 import JOB_STATE_CANCELLED, JOB_STATE_SUCCEEDED, Job

pytestmark = [pytest.mark.slow, pytest.mark.process, pytest.mark.server]

SERVICES = ("gateway", "encoder", "generator", "decoder", "ranker")
SECONDS = 180.0
"""Time limit for anything that is waited for, on a busy machine."""
PROMPTS = 24
SHARD = 2
OPEN = 6
"""Jobs that are open while the database is dumped."""


def commands(about: str) -> list[str]:
    """Returns the commands of a block of the page, which begins with a comment."""
    page = (ROOT / "docs" / "backup.md").read_text(encoding="utf-8")
    found = re.search(rf"^```sh\n# {re.escape(about)}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert found, about
    return [line for line in found[1].splitlines() if line and not line.startswith("#")]


class Site:
    """Servers of a system, empty at first, and its services."""

    def __init__(self, folder: Path, model: ModelFolder, stack: ExitStack) -> None:
        self.postgres, self.s3, self.valkey = PostgresServer(), S3Server(), ValkeyServer()
        servers = (self.postgres, self.s3, self.valkey)
        for server in servers:
            stack.callback(server.close)
        with ThreadPoolExecutor() as threads:
            for started in [threads.submit(server.start) for server in servers]:
                started.result()
        self.services = [
            ServiceProcess(
                name,
                broker=self.valkey.url,
                store=self.s3.url,
                model=model.path,
                folder=folder / name,
                environment={
                    "SMALTI_MESSAGES_WRITE": "3",
                    "SMALTI_SERVICE_HELLO": "1",
                    "SMALTI_BROKER_OLD_QUEUES": "0",
                    "SMALTI_GATEWAY_DATABASE": self.postgres.url,
                    "SMALTI_GATEWAY_LEASE": "6",
                    "SMALTI_GATEWAY_SHARD_LEASE": "6",
                },
            )
            for name in SERVICES
        ]
        for service in self.services:
            stack.callback(service.close)
        self.url = self.services[0].url

    def start(self) -> None:
        for service in self.services:
            service.launch()
        for service in self.services:
            service.wait_until_ready()
        with Client(self.url) as client:
            wait_until(lambda: any(model.available for model in client.models()), SECONDS)

    def run(self, command: str, folder: Path) -> None:
        """Runs a command of the page for the servers of this site."""
        programs = self.postgres.programs()
        assert programs is not None
        assert shutil.which("rclone"), "rclone is not installed; install Debian's package of that name"
        # Some of AWS's variables, such as AWS_CA_BUNDLE, are more than rclone takes.
        others = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        environment = {
            **others,
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "SMALTI_GATEWAY_DATABASE": self.postgres.url,
            "RCLONE_CONFIG_STORE_TYPE": "s3",
            "RCLONE_CONFIG_STORE_PROVIDER": "Other",
            "RCLONE_CONFIG_STORE_ENDPOINT": f"http://{HOST}:{self.s3.port}",
            "RCLONE_CONFIG_STORE_ACCESS_KEY_ID": self.s3.access_key,
            "RCLONE_CONFIG_STORE_SECRET_ACCESS_KEY": self.s3.secret_key,
        }
        done = subprocess.run(
            ["sh", "-ec", command], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"


@contextmanager
def site(folder: Path, model: ModelFolder) -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(folder, model, stack)


def pictures_of(client: Client, job: Job | str) -> list[bytes]:
    return [picture.content for picture in client.download(job)]


def files_of(client: Client, batch: str) -> Mapping[str, bytes]:
    """Returns the files of a batch by name, without the summary, which has the times of the batch."""
    return {
        file.name: b"".join(client.batches.read(batch, file))
        for file in client.batches.files(batch)
        if file.name != "summary.json"
    }


def ended(client: Client, job: Job) -> Job:
    *_, last = client.watch(job.id)
    return last


def ended_batch(client: Client, batch: Batch) -> Batch:
    *_, last = client.batches.watch(batch.id)
    return last


def partly_drawn(client: Client, draw: Callable[[], Batch]) -> Batch:
    """Returns a batch that runs and has drawn some of its prompts; it may be over before that is seen."""
    for _ in range(5):
        for batch in client.batches.watch(draw().id):
            if batch.state == BATCH_STATE_RUNNING and 0 < batch.progress.prompts_drawn < PROMPTS:
                return batch
    raise AssertionError("no batch was seen before it was over")


def test_what_was_backed_up_while_it_worked_goes_on_at_new_servers(tiny: ModelFolder, tmp_path: Path) -> None:
    backup, prompts = tmp_path / "backup", tmp_path / "prompts.txt"
    backup.mkdir()
    prompts.write_text("".join(f"a red fox {number}\n" for number in range(PROMPTS)))
    first, dump, second = commands("Back up")

    with site(tmp_path / "old", tiny) as old:
        old.start()
        with Client(old.url) as client:

            def create(seed: int) -> Job:
                return client.create("a red fox", seed=seed, n=2, candidates=3)

            def draw_batch(slots: int = 0) -> Batch:
                return client.batches.create(
                    prompts, seed=5, n=1, candidates=2, shard_prompts=SHARD, slots=slots or None
                )

            done = ended(client, create(1))
            done_pictures = pictures_of(client, done)
            done_batch = ended_batch(client, draw_batch())
            done_files = files_of(client, done_batch.id)
            file = client.files.upload(prompts)

            running = partly_drawn(client, lambda: draw_batch(slots=2))
            still_open = [create(seed) for seed in range(2, 2 + OPEN)]
            cancelled = create(50)
            old.run(first, backup)
            old.run(dump, backup)

            # Between the two copies all of it goes on.
            client.cancel(cancelled.id)
            late = ended(client, create(60))
            ends = [ended(client, job) for job in still_open]
            assert ended_batch(client, running).state == BATCH_STATE_SUCCEEDED
            expected = [pictures_of(client, job) for job in ends]
            old.run(second, backup)

    with site(tmp_path / "new", tiny) as new:
        for command in commands("Restore"):
            new.run(command, backup)
        new.start()
        with Client(new.url) as client:
            assert pictures_of(client, done.id) == done_pictures
            assert files_of(client, done_batch.id) == done_files
            assert b"".join(client.files.read(file)) == prompts.read_bytes()
            ends = [ended(client, job) for job in still_open]
            assert [job.state for job in ends] == [JOB_STATE_SUCCEEDED] * OPEN
            assert [pictures_of(client, job) for job in ends] == expected
            assert ended_batch(client, running).state == BATCH_STATE_SUCCEEDED
            assert files_of(client, running.id) == done_files
            # Its row is older than its marker, which the copy of the store has.
            assert ended(client, cancelled).state in (JOB_STATE_CANCELLED, JOB_STATE_SUCCEEDED)
            # Its pictures are there without a row, and stay.
            with pytest.raises(JobNotFoundError):
                client.get(late.id)
            assert any(open_store(store_settings_for(new.s3.url)).objects(f"jobs/{late.id}/candidates/"))
            assert (
                ended(client, client.create("a red fox", seed=70, n=2, candidates=3)).state
                == JOB_STATE_SUCCEEDED
            )
