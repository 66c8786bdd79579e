"""The account of a row: what was asked for, what became of it, and what nobody asked for.

In the manner of Jepsen: a fault may make the system slow, or let it refuse; what it has accepted must come to one end,
and nothing may be there that cannot be explained.
"""

import contextlib
import uuid
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from faults.reference import Reference
from faults.system import PATIENCE, System
from harness.queue import wait_until
from smalti.client import Client, has_ended
from smalti.errors import DamagedObjectError, SmaltiError, UnavailableError
from smalti.storage import JobKeys
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


@dataclass
class Submission:
    """A request for a job, and what became of it."""

    prompt: str
    seed: int
    candidates: int
    request_id: str
    asked: dict[str, Any]
    job: str = ""
    """The id under which it was accepted."""
    refused: SmaltiError | None = None
    """Why it was not, as the client was told."""
    end: Job | None = None
    """The job when it was first seen to have ended."""

    @property
    def state(self) -> str:
        """How it has ended; "lost" when it has not, and "refused" when it was never accepted."""
        if not self.job:
            return "refused"
        return ENDS[self.end.state] if self.end else "lost"


@dataclass
class Tally:
    """The numbers of a row."""

    states: Counter[str] = field(default_factory=Counter)
    twice: int = 0
    """Work that was done more than once; harmless, since it writes the same bytes."""
    unexpected: list[str] = field(default_factory=list)
    """Objects and jobs that nothing explains."""
    wrong: list[str] = field(default_factory=list)
    """Pictures that are not those of a run without faults, and jobs that have changed after their end."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Why jobs have failed."""

    @property
    def accepted(self) -> int:
        """Jobs that were accepted."""
        return self.states.total() - self.states["refused"]


class Account:
    """Submits, and keeps the books of one row."""

    def __init__(self, system: System, reference: Reference, known: dict[str, Submission]) -> None:
        """Begins empty.

        Args:
            system: what is asked.
            reference: knows what requests draw.
            known: the jobs of the system that earlier rows have asked for, by their ids; these are added.
        """
        self.system = system
        self.submissions: list[Submission] = []
        self._reference = reference
        self._known = known

    def submit(
        self, prompt: str, *, seed: int = 1, candidates: int = 2, client: Client | None = None, **asked: Any
    ) -> Submission:
        """Asks for a job once; notes whether it was accepted."""
        submission = Submission(prompt, seed, candidates, str(uuid.uuid4()), asked)
        self.submissions.append(submission)
        self.ask(submission, client)
        return submission

    def ask(self, submission: Submission, client: Client | None = None) -> None:
        """Asks for a job, or asks again, as a client does who does not know whether it was heard."""
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
        """Asks for jobs, several at a time; each with the seed of its place."""
        with self.system.client() as client, ThreadPoolExecutor(SUBMITTERS) as threads:
            return list(
                threads.map(
                    lambda numbered: self.submit(numbered[1], seed=numbered[0], client=client, **asked),
                    enumerate(prompts),
                )
            )

    def settle(self, *submissions: Submission, seconds: float = PATIENCE) -> None:
        """Waits until jobs have ended, all by default; what has not ended in time stays without an end."""
        waiting = [each for each in submissions or self.submissions if each.job and not each.end]
        with self.system.client(attempts=4, retry_seconds=60) as client, contextlib.suppress(AssertionError):

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
        """Asks again for what may have been heard, waits for all, and counts."""
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
        """Finds out whether a request that was answered with an error has made a job nevertheless."""
        with self.system.client(attempts=4, retry_seconds=60) as client:
            for job in client.list():
                if job.request_id == submission.request_id:
                    submission.job = job.id
                    self._known[job.id] = submission

    def _check(self, client: Client, submission: Submission, end: Job, tally: Tally) -> None:
        """Checks that a job has stayed as it has ended, and that its pictures are right."""
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
            if picture.sha256 != self._sha256(submission, picture.candidate):
                tally.wrong.append(f"picture {picture.candidate} of job {job.id}, as the gateway has it")

    def _check_store(self, tally: Tally) -> None:
        """Looks at every object of the store: what it is, and whose; every picture is read."""
        mine = {each.job for each in self.submissions}
        for info in self.system.store.objects("jobs/"):
            job = info.key.split("/")[1]
            submission = self._known.get(job)
            if submission is None or not _explained(info.key, submission):
                tally.unexpected.append(info.key)
            elif job in mine and info.key.endswith(".png"):
                candidate = int(info.key.rpartition("/")[2].removesuffix(".png"))
                with contextlib.suppress(DamagedObjectError):  # Nobody can take that for a picture.
                    if digest(self.system.store.get(info.key)) != self._sha256(submission, candidate):
                        tally.wrong.append(info.key)
        with self.system.client(attempts=4, retry_seconds=60) as client:
            tally.unexpected += [f"job {job.id}" for job in client.list() if job.id not in self._known]

    def _sha256(self, submission: Submission, candidate: int) -> str:
        return self._reference.sha256(submission.prompt, submission.seed, candidate, submission.candidates)


def _explained(key: str, submission: Submission) -> bool:
    """Says whether a job accounts for an object."""
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
    }
    return key in allowed or key.startswith(keys.poison_record("").removesuffix(".json"))
