"""Accounts for every job of a row of the fault matrix, and for every object in the store.

As in Jepsen, a fault may make the system slow or make it refuse jobs. Every accepted job must reach one end, and every
object must be explained by a job.
"""

import contextlib
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from faults.layout import Layout
from faults.system import PATIENCE
from faults.tally import Tally
from harness.objects import name_of
from harness.waiting import wait_until
from smalti.client import Client, has_ended
from smalti.errors import DamagedObjectError, SmaltiError, UnavailableError
from smalti.parameters import Refinement, SecondPass
from smalti.registry.folder import ModelFolder
from smalti.storage import JobKeys, ObjectStore
from smalti.storage.store import digest
from smalti.v1 import job_pb2
from smalti.v1.job_pb2 import Job

SUBMITTERS = 8
ENDS = {
    job_pb2.JOB_STATE_SUCCEEDED: "succeeded",
    job_pb2.JOB_STATE_FAILED: "failed",
    job_pb2.JOB_STATE_CANCELLED: "cancelled",
    job_pb2.JOB_STATE_EXPIRED: "expired",
}


class Accounted(Protocol):
    """What an account needs of a system; see `faults.system.System`."""

    layout: Layout
    store: ObjectStore

    @property
    def model(self) -> ModelFolder:
        """The model that the gateways are configured with."""

    def client(
        self, gateway: str = "", *, attempts: int = 1, retry_seconds: float = 0.0
    ) -> AbstractContextManager[Client]:
        """Yields a client of a gateway."""

    def clients(
        self, *, attempts: int = 1, retry_seconds: float = 0.0
    ) -> AbstractContextManager[Sequence[Client]]:
        """Yields a client of each gateway."""

    def executions(self, *names: str) -> dict[tuple[str, str, int | None], int]:
        """Counts how often the work of each job, stage and chunk was done."""


class Expected(Protocol):
    """The expected pictures of a revision; see `faults.reference.Reference`."""

    def sha256(
        self, prompt: str, seed: int, candidate: int, of: int, second_pass: SecondPass | None = None
    ) -> str:
        """Returns the checksum of the file of a picture."""

    def repacked_sha256(self, prompt: str, seed: int, candidate: int, of: int) -> str:
        """Returns the checksum of the file of `faults.other_decoder`; of no use where it does not run."""


@dataclass
class Submission:
    """A submitted job and its result."""

    prompt: str
    seed: int
    candidates: int
    request_id: str
    asked: dict[str, Any]
    job: str = ""
    """The id of the accepted job; empty if it was not accepted."""
    refused: SmaltiError | None = None
    """The error with which it was refused."""
    end: Job | None = None
    """The job as it was first seen after its end."""

    @property
    def second_pass(self) -> SecondPass | None:
        """The second pass of its pictures, with what the faults' model does unless told otherwise."""
        if self.asked.get("refine"):
            return SecondPass(upscale=2, refine=Refinement())
        return SecondPass(upscale=self.asked["upscale"]) if self.asked.get("upscale") else None

    @property
    def state(self) -> str:
        """The final state; "lost" for a job without an end, "refused" for one that was not accepted."""
        if not self.job:
            return "refused"
        return ENDS[self.end.state] if self.end else "lost"


class Account:
    """Submits the jobs of a row, and accounts for them."""

    def __init__(
        self,
        system: Accounted,
        references: Mapping[str, Expected],
        known: dict[str, Submission],
        *,
        is_other: Callable[[str], bool] = lambda job: False,
    ) -> None:
        """Starts without submissions.

        Args:
            system: the system under test.
            references: generate the expected pictures, by the revision of the model.
            known: all jobs that were submitted to the system, by id; new ones are added.
            is_other: returns whether the objects of a job belong to another account.
        """
        self.system = system
        self._is_other = is_other
        self.submissions: list[Submission] = []
        self._references = references
        self._known = known

    def submit(
        self, prompt: str, *, seed: int = 1, candidates: int = 2, client: Client | None = None, **asked: Any
    ) -> Submission:
        """Submits a job once, and records whether it was accepted."""
        submission = Submission(prompt, seed, candidates, str(uuid.uuid4()), asked)
        self.submissions.append(submission)
        self.ask(submission, client)
        return submission

    def ask(self, submission: Submission, client: Client | None = None) -> None:
        """Submits a job, or repeats the call like a client that got no answer."""
        with contextlib.ExitStack() as stack:
            client = client or stack.enter_context(self.system.client())
            try:
                job = client.create(
                    submission.prompt,
                    n=submission.candidates,
                    candidates=submission.candidates,
                    seed=submission.seed,
                    request_id=submission.request_id,
                    **submission.asked,
                )
            except SmaltiError as error:
                submission.refused = error
                return
        submission.job, submission.refused = job.id, None
        self._known[job.id] = submission

    def submit_many(self, prompts: Sequence[str], **asked: Any) -> list[Submission]:
        """Submits jobs concurrently, to the gateways in turn; each has its index as its seed."""
        with self.system.clients() as clients, ThreadPoolExecutor(SUBMITTERS) as threads:

            def submit(numbered: tuple[int, str]) -> Submission:
                number, prompt = numbered
                return self.submit(prompt, seed=number, client=clients[number % len(clients)], **asked)

            return list(threads.map(submit, enumerate(prompts)))

    def settle(self, *submissions: Submission, seconds: float = PATIENCE, gateway: str = "") -> None:
        """Waits until jobs have ended, by default all; those that do not end in time stay without an end.

        Args:
            submissions: the jobs.
            seconds: how long to wait.
            gateway: the name of the gateway to ask; by default any that goes on.
        """
        waiting = [each for each in submissions or self.submissions if each.job and not each.end]
        with (
            self.system.client(gateway, attempts=4, retry_seconds=60) as client,
            contextlib.suppress(AssertionError),
        ):

            def look() -> bool:
                for each in list(waiting):
                    with contextlib.suppress(UnavailableError):
                        job = client.get(each.job)
                        if has_ended(job):
                            each.end = job
                            waiting.remove(each)
                return not waiting

            wait_until(look, seconds)

    def close(self) -> Tally:
        """Looks for refused jobs that were accepted nevertheless, waits for all jobs, and counts."""
        for each in self.submissions:
            if isinstance(each.refused, UnavailableError) and not each.job:
                self._find(each)
        self.settle()
        tally = Tally(Counter(each.state for each in self.submissions))
        jobs = {each.job for each in self.submissions if each.job}
        tally.twice = sum(count - 1 for (job, _, _), count in self.system.executions().items() if job in jobs)
        with self.system.client(attempts=4, retry_seconds=60) as client:
            for each in self.submissions:
                if each.end is not None:
                    self._check(client, each, each.end, tally)
        self._check_store(tally)
        return tally

    def _find(self, submission: Submission) -> None:
        """Looks for the job of a call that returned an error."""
        with self.system.client(attempts=4, retry_seconds=60) as client:
            for job in client.list():
                if job.request_id == submission.request_id:
                    submission.job = job.id
                    self._known[job.id] = submission

    def _check(self, client: Client, submission: Submission, end: Job, tally: Tally) -> None:
        """Checks that a job did not change after its end, and that its pictures are right."""
        job = client.get(submission.job)
        if (job.state, job.version) != (end.state, end.version):
            tally.wrong.append(f"job {job.id} has changed after its end")
        if job.state == job_pb2.JOB_STATE_FAILED:
            tally.reasons[job.error.message] += 1
        if job.state != job_pb2.JOB_STATE_SUCCEEDED:
            return
        drawn = sorted(picture.candidate for picture in job.pictures)
        if drawn != list(range(submission.candidates)):
            tally.wrong.append(f"job {job.id} has the pictures {drawn}")
        for picture in job.pictures:
            reference = self._references[job.parameters.model.revision]
            allowed = self._allowed(reference, submission, picture.candidate, submission.second_pass)
            if picture.sha256 not in allowed:
                tally.wrong.append(f"picture {picture.candidate} of job {job.id}, as the gateway has it")

    def _check_store(self, tally: Tally) -> None:
        """Checks every object in the store, and compares every picture."""
        mine = {each.job for each in self.submissions}
        for info in self.system.store.objects("jobs/"):
            job = info.key.split("/")[1]
            submission = self._known.get(job)
            if self._is_other(job):
                continue
            if submission is None or not _explained(info.key, submission):
                tally.unexpected.append(info.key)
            elif job in mine and info.key.endswith(".png"):
                candidate = int(name_of(info.key).rpartition("/")[2].removesuffix(".png"))
                second_pass = submission.second_pass if "/refined/" in info.key else None
                with contextlib.suppress(DamagedObjectError):  # A damaged picture cannot be served.
                    allowed = [
                        sha256
                        for reference in self._possible()
                        for sha256 in self._allowed(reference, submission, candidate, second_pass)
                    ]
                    if digest(self.system.store.get(info.key)) not in allowed:
                        tally.wrong.append(info.key)
        with self.system.client(attempts=4, retry_seconds=60) as client:
            tally.unexpected += [f"job {job.id}" for job in client.list() if job.id not in self._known]

    def _possible(self) -> Sequence[Expected]:
        """Returns what may have drawn a picture in the store: perhaps another revision, before a job was bound anew."""
        if not self.system.layout.models:
            return [self._references[self.system.model.revision]]
        return list(self._references.values())

    def _allowed(
        self, reference: Expected, submission: Submission, candidate: int, second_pass: SecondPass | None
    ) -> tuple[str, ...]:
        """Returns the checksums that a picture may have: one, unless there are decoders of two kinds."""
        drawn = submission.prompt, submission.seed, candidate, submission.candidates
        sha256 = reference.sha256(*drawn, second_pass)
        if not self.system.layout.modules:
            return (sha256,)
        return sha256, reference.repacked_sha256(*drawn)


def _explained(key: str, submission: Submission) -> bool:
    """Returns whether a job explains an object."""
    keys = JobKeys(submission.job)
    if key == keys.result:
        return submission.state == "succeeded"
    if key == keys.cancelled:
        return submission.state != "succeeded"
    chunks = range(submission.candidates)
    allowed = {
        keys.encoding,
        *map(keys.tokens, chunks),
        *map(keys.scores, chunks),
        *map(keys.candidate, chunks),
        *(map(keys.refined, chunks) if submission.second_pass else ()),
    }
    more = (keys.encodings, keys.poison_records, f"{keys.folder}outputs/")
    return name_of(key) in allowed or key.startswith(more)
