"""Accounts for every batch of a row of the fault matrix: every prompt once in its manifest, and every object of it."""

import contextlib
import re
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from faults.batches.output import problems_of, read_output
from faults.batches.submissions import CANDIDATES, SHARD_PROMPTS, BatchSubmission
from faults.reference import Reference
from faults.system import PATIENCE, System
from faults.tally import Tally
from harness.objects import name_of
from harness.waiting import wait_until
from smalti.batches import SUMMARY_FILE, BatchKeys
from smalti.client import Client, has_ended
from smalti.errors import BatchNotFoundError, SmaltiError, UnavailableError
from smalti.storage import JobKeys, digest
from smalti.v1.batch_pb2 import Batch

SECONDS: Final = 3 * PATIENCE
"""Time limit for a batch: its shards may kill their workers one after the other."""
TRIES: Final = 4
RETRY_SECONDS: Final = 60.0
CLEANING_SECONDS: Final = 30.0
"""Time within which what an ended batch does not need any more is deleted, but for what stages write late."""
_LOOK_SECONDS: Final = 0.2
"""Interval between two looks at batches; each connects anew, and must not slow down what is looked at."""
_MARKER: Final = "/cancelled.json"


class BatchAccount:
    """Submits the batches of a row, and accounts for them."""

    def __init__(
        self, system: System, references: Mapping[str, Reference], known: dict[str, BatchSubmission]
    ) -> None:
        """Starts without submissions.

        Args:
            system: the system under test.
            references: generate the expected pictures, by the revision of the model.
            known: all batches that were submitted to the system, by id; new ones are added.
        """
        self.system = system
        self.submissions: list[BatchSubmission] = []
        self._references = references
        self._known = known

    def submit(
        self,
        name: str,
        prompts: Sequence[str],
        *,
        failing: Sequence[int] = (),
        invalid: Sequence[int] = (),
        client: Client | None = None,
        content: bytes | None = None,
        **asked: Any,
    ) -> BatchSubmission:
        """Submits a batch once, and records whether it was accepted.

        Args:
            name: its name, different from those of the other batches of the system.
            prompts: the lines of its input.
            failing: rows that cannot be drawn.
            invalid: rows that cannot be used.
            client: the client to use; by default one of the gateways in turn.
            content: the input, if that is not the prompts.
            asked: further arguments of the call.
        """
        submission = BatchSubmission(
            name,
            tuple(prompts),
            str(uuid.uuid4()),
            {"shard_prompts": SHARD_PROMPTS, **asked},
            frozenset(failing),
            frozenset(invalid),
        )
        lines = "".join(f"{prompt}\n" for prompt in prompts).encode()
        self.system.store.put(submission.input_key, lines if content is None else content)
        self.submissions.append(submission)
        self.ask(submission, client)
        return submission

    def ask(self, submission: BatchSubmission, client: Client | None = None) -> bool:
        """Submits a batch, or repeats the call like a client that got no answer; returns whether it was accepted."""
        with contextlib.ExitStack() as stack:
            client = client or stack.enter_context(self.system.client())
            try:
                batch = client.batches.create(
                    object_key=submission.input_key,
                    name=submission.name,
                    n=CANDIDATES,
                    candidates=CANDIDATES,
                    request_id=submission.request_id,
                    **submission.asked,
                )
            except SmaltiError as error:
                submission.refused = error
                return False
        submission.batch, submission.refused = batch.id, None
        self._known[batch.id] = submission
        return True

    def now(self, submission: BatchSubmission) -> Batch:
        """Returns a batch as it is now, from any gateway that goes on."""
        with self.system.client(attempts=TRIES, retry_seconds=RETRY_SECONDS) as client:
            return client.batches.get(submission.batch)

    def wait_until(
        self, submission: BatchSubmission, condition: Callable[[Batch], bool], seconds: float = PATIENCE
    ) -> Batch:
        """Waits until a condition of a batch holds; raises `AssertionError` if it ends before, or takes too long."""
        found: list[Batch] = []

        def look() -> bool:
            found[:] = [self.now(submission)]
            if not condition(found[0]) and has_ended(found[0]):
                raise AssertionError(f"batch {submission.name!r} has ended: {found[0].state}")
            return condition(found[0])

        wait_until(look, seconds)
        return found[0]

    def settle(self, *submissions: BatchSubmission, seconds: float = SECONDS, gateway: str = "") -> None:
        """Waits until batches have ended, by default all; those that do not end in time stay without an end.

        Args:
            submissions: the batches.
            seconds: how long to wait.
            gateway: the name of the gateway to ask; by default any that goes on.
        """
        waiting = [each for each in submissions or self.submissions if each.batch and not each.end]
        until = time.monotonic() + seconds
        while waiting and time.monotonic() < until:
            with (
                contextlib.suppress(UnavailableError),
                self.system.client(gateway, attempts=TRIES, retry_seconds=RETRY_SECONDS) as client,
            ):
                for each in list(waiting):
                    batch = client.batches.get(each.batch)
                    if has_ended(batch):
                        each.end = batch
                        waiting.remove(each)
            if waiting:
                time.sleep(_LOOK_SECONDS)

    def listed(self, submission: BatchSubmission) -> dict[str, str]:
        """Returns the SHA-256 of each file of a batch, as a gateway lists them."""
        with self.system.client(attempts=TRIES, retry_seconds=RETRY_SECONDS) as client:
            return {file.name: file.sha256 for file in client.batches.files(submission.batch)}

    def differences(self, first: BatchSubmission, second: BatchSubmission) -> list[str]:
        """Returns the names of files in which two batches of the same prompts differ, though nothing may differ.

        The summaries differ in the name of the input alone.
        """
        one, other = (read_output(self.system.store, each.batch) for each in (first, second))
        for files, submission in ((one, first), (other, second)):
            if SUMMARY_FILE in files:
                name = submission.input_key.rpartition("/")[2].encode()
                files[SUMMARY_FILE] = files[SUMMARY_FILE].replace(name, b"input")
        return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))

    def close(self) -> Tally:
        """Looks for refused batches that were accepted nevertheless, waits for all batches, and counts."""
        for each in self.submissions:
            if isinstance(each.refused, UnavailableError) and not each.batch:
                self._find(each)
        self.settle()
        tally = Tally(Counter(each.state for each in self.submissions))
        tally.twice = sum(
            count - 1
            for (job, *_), count in self.system.executions().items()
            if any(each.owns(job) for each in self.submissions)
        )
        for each in self.submissions:
            if each.end is not None:
                tally.wrong += [f"batch {each.name!r}: {problem}" for problem in self._problems(each, tally)]
        self._check_store(tally)
        return tally

    def explains(self, job: str) -> bool:
        """Returns whether a job's objects are those of a shard of a known batch."""
        return any(each.owns(job) for each in self._known.values())

    def _find(self, submission: BatchSubmission) -> None:
        """Looks for the batch of a call that returned an error."""
        with self.system.client(attempts=TRIES, retry_seconds=RETRY_SECONDS) as client:
            for batch in client.batches.list():
                if batch.request_id == submission.request_id:
                    submission.batch = batch.id
                    self._known[batch.id] = submission

    def _problems(self, submission: BatchSubmission, tally: Tally) -> list[str]:
        """Returns what is wrong with a batch that has ended."""
        assert submission.end is not None
        try:
            now = self.now(submission)
        except BatchNotFoundError:
            return ["it is not there any more"]
        found = []
        if (now.state, now.version) != (submission.end.state, submission.end.version):
            found.append("it has changed after its end")
        if now.error.message:
            tally.reasons[now.error.message] += 1
        files = read_output(self.system.store, submission.batch)
        submission.files = {name: digest(content) for name, content in files.items()}
        if files or submission.state == "succeeded":
            found += problems_of(submission, files, self._references)
        listed = self.listed(submission)
        if listed != submission.files:
            found.append(f"it lists {sorted(listed)}, and has {sorted(submission.files)}")
        return found

    def _check_store(self, tally: Tally) -> None:
        """Checks that every object of a batch is explained."""
        ended = [each for each in self.submissions if each.end is not None]
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not any(map(self.left_over, ended)), CLEANING_SECONDS)
        left = [key for each in ended for key in self.left_over(each)]
        tally.unexpected += [key for key in left if not _is_explained(key)]
        if left:
            tally.notes.append(
                f"{len(left)} objects of the work for batches are left until their late clean-up"
            )
        for info in self.system.store.objects("batches/"):
            if info.key.split("/")[1] not in self._known:
                tally.unexpected.append(info.key)

    def left_over(self, submission: BatchSubmission) -> list[str]:
        """Returns the keys of what is left of the work for a batch, beside its output and the markers for stages."""
        keys = BatchKeys(submission.batch)
        found = [
            *self.system.store.objects(keys.folder),
            *self.system.store.objects(f"jobs/{submission.batch}-"),
        ]
        return [
            info.key
            for info in found
            if not info.key.startswith(keys.prefix) and not info.key.endswith(_MARKER)
        ]


def _is_explained(key: str) -> bool:
    """Returns whether the work for a batch makes an object with this key."""
    top, job, name = name_of(key).split("/", 2)
    if top == "batches":
        return (
            re.fullmatch(r"shards/[0-9]{5}\.jsonl|parts/[0-9]{5}(-[0-9]+-[0-9]+)?\.jsonl", name) is not None
        )
    keys = JobKeys(job)
    names = (
        keys.shard_encodings,
        keys.shard_tokens,
        keys.shard_candidates,
        keys.shard_chosen,
        keys.shard_output,
    )
    return name_of(key) in names or key.startswith((keys.poison_records, f"{keys.folder}outputs/"))
