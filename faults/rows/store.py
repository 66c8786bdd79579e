"""Faults of the object store, and lost or damaged objects."""

import io
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import urllib3
from minio import Minio
from minio.commonconfig import ENABLED, Filter
from minio.lifecycleconfig import Expiration, LifecycleConfig, Rule
from minio.xml import marshal

from faults.accounting import Submission
from faults.layout import STAGE_NAMES
from faults.matrix import Trial, row, sleeping
from faults.system import System
from harness.objects import key_of
from harness.proxy import NetworkFault
from harness.servers import HOST, S3Server
from harness.waiting import wait_until
from smalti.errors import SmaltiError
from smalti.storage import JobKeys
from smalti.storage.s3 import CHECKSUM

SECONDS, SHORT_SECONDS = 6.0, 2.0
NOT_NOW = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/xml\r\nContent-Length: 0\r\n"
    b"Connection: close\r\n\r\n"
)
_BUSY_BODY = b"<Error><Code>SlowDownWrite</Code><Message>come again</Message></Error>"
BUSY = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: "
    + str(len(_BUSY_BODY)).encode()
    + b"\r\nConnection: close\r\n\r\n"
    + _BUSY_BODY
)
TROUBLES = {
    "cut": NetworkFault(cut=True),
    "slow": NetworkFault(delay=0.2),
    "answers 503": NetworkFault(answer=NOT_NOW),
    "answers SlowDownWrite": NetworkFault(answer=BUSY),
    "does not answer although it does the work": NetworkFault(lose_responses=True),
    "breaks off its answers": NetworkFault(max_bytes=300),
}


@row(
    "10",
    "store down, slow, answering 503, not answering although it does the work, breaking off its answers, killed",
    "the work is done when the store is back; a truncated object is never accepted",
)
def store_in_trouble(trial: Trial) -> None:
    """Every network fault of the store, with running jobs and new ones."""
    system, account = trial.system, trial.account
    for name, trouble in TROUBLES.items():
        count = max(1, trial.jobs // 6)
        account.submit_many([f"row 10 before {name} {number}" for number in range(count)])
        with system.faulty("gateways", "store", trouble), system.faulty("stages", "store", trouble):
            account.submit_many([f"row 10 {name} {number}" for number in range(count)])
            time.sleep(SECONDS if trial.long else SHORT_SECONDS)
        trial.expect_states("succeeded")
    account.submit_many([f"row 10 before kill {number}" for number in range(trial.jobs // 2)])
    system.s3.kill()
    account.submit_many([f"row 10 killed {number}" for number in range(trial.jobs // 4)])
    system.s3.start()
    trial.expect_states("succeeded")


# The name of the object that each stage has written, but not reported, when it is damaged.
WRITTEN: dict[str, Callable[[JobKeys], str]] = {
    "encode": lambda keys: keys.encoding,
    "generate": lambda keys: keys.tokens(0),
    "decode": lambda keys: keys.candidate(1),
    "rank": lambda keys: keys.scores(0),
    "refine": lambda keys: keys.refined(1),
}
HARMS = ("missing", "damaged", "other")
_HARMED = {
    (stage, harm): sleeping("row 11", f"{stage}.after-write", 3, harm)
    for stage in STAGE_NAMES.values()
    for harm in HARMS
}
_LAST = sleeping("row 11", "rank.after-write", 3, "tokens")


@row(
    "11",
    "objects missing, damaged, or replaced, between the stages and at the end",
    "they are made again; a damaged picture is never served",
    failpoints=(*(failpoint for failpoint, _ in _HARMED.values()), _LAST[0]),
)
def objects_harmed(trial: Trial) -> None:
    """Damages the output of a stage before the next one reads it, and a picture after the end of its job."""
    system, account = trial.system, trial.account
    for harm in HARMS:
        harm_between(trial, {stage: _HARMED[stage, harm] for stage in STAGE_NAMES.values()}, harm)
    last = account.submit(_LAST[1])
    system.wait_until_reached(_LAST[0])
    harm_object(system, key_of(system.store, JobKeys(last.job).tokens(0)), "damaged")
    trial.expect_states("succeeded")
    again = begun_again(system)
    trial.notes.append(f"chunks were restarted {again} times")
    trial.expect(
        again >= len(_HARMED), f"chunks were restarted {again} times, for {len(_HARMED)} damaged objects"
    )
    done = account.submit("row 11 damaged at the end")
    trial.expect_states("succeeded", done)
    harm_object(system, key_of(system.store, JobKeys(done.job).candidate(0)), "damaged")
    trial.expect(refused(system, done), "a damaged picture was served")


def harm_between(trial: Trial, sleepers: Mapping[str, tuple[str, str]], harm: str, **asked: Any) -> None:
    """Submits jobs, and harms the output of a stage for each, while the stage sleeps before it reports the output.

    Args:
        trial: the row.
        sleepers: the failpoint and the prompt for each stage.
        harm: one of `HARMS`.
        asked: further arguments of the jobs.
    """
    submitted = {stage: trial.account.submit(prompt, **asked) for stage, (_, prompt) in sleepers.items()}
    for stage, submission in submitted.items():
        trial.system.wait_until_reached(sleepers[stage][0])
        harm_object(trial.system, key_of(trial.system.store, WRITTEN[stage](JobKeys(submission.job))), harm)


DOWNLOADERS, CALLS, MAX_SECONDS = 40, 5, 8.0


@row(
    "22",
    "store that takes requests and does not answer, while 40 clients download",
    "jobs are accepted, listed and cancelled in time; downloads are refused at once until the store is back",
)
def store_hangs(trial: Trial) -> None:
    """Lets clients download again and again while the store hangs, and calls what needs no store."""
    system, account = trial.system, trial.account
    done = account.submit("row 22 before")
    trial.expect_states("succeeded", done)
    over = threading.Event()
    refusals: list[float] = []

    def download() -> None:
        while not over.is_set():
            began = time.monotonic()
            if refused(system, done):
                refusals.append(time.monotonic() - began)

    threads = [threading.Thread(target=download) for _ in range(DOWNLOADERS)]
    slowest = 0.0
    with system.faulty("gateways", "store", NetworkFault(lose_responses=True)):
        for thread in threads:
            thread.start()
        try:
            wait_until(lambda: len(refusals) >= DOWNLOADERS)
            for number in range(CALLS):
                began = time.monotonic()
                submitted = account.submit(f"row 22 while it hangs {number}")
                with system.client() as client:
                    next(iter(client.list()))
                    if number == 0:
                        client.cancel(submitted.job)
                slowest = max(slowest, time.monotonic() - began)
        finally:
            over.set()
            for thread in threads:
                thread.join()
    trial.expect(slowest < MAX_SECONDS, f"accepting, listing and cancelling took {slowest:.1f} s")
    # Each read alone would take the store's timeout for each of its tries.
    half = sorted(refusals)[len(refusals) // 2]
    trial.expect(half < MAX_SECONDS, f"half of the downloads waited longer than {half:.1f} s")
    trial.notes.append(
        f"{len(refusals)} downloads were refused, half of them within {half:.1f} s; "
        f"the slowest turn of other calls: {slowest:.1f} s"
    )
    wait_until(lambda: not refused(system, done))
    trial.expect_states(
        "succeeded", *(each for each in account.submissions if not each.prompt.endswith("hangs 0"))
    )


@row(
    "21",
    "a bucket with lifecycle rules of others",
    "they are as before, whatever the gateway does; jobs go on",
)
def foreign_rules(trial: Trial) -> None:
    """Gives the bucket a rule for other objects, starts the gateway again, and compares."""
    system = trial.system
    client = _minio(system)
    backups = Rule(
        ENABLED, rule_filter=Filter(prefix="backup/"), rule_id="backups", expiration=Expiration(days=1)
    )
    client.set_bucket_lifecycle(S3Server.bucket, LifecycleConfig([backups]))
    before = _rules(client)
    try:
        with system.held(*system.gateways):
            pass
        trial.account.submit_many([f"row 21 {number}" for number in range(trial.jobs // 4)])
        trial.expect_states("succeeded")
        trial.expect(before == _rules(client) and "backup/" in before, f"the rules are {_rules(client)}")
        warned = any(
            "lifecycle rules of others" in str(line.get("event")) for line in system.lines(*system.gateways)
        )
        trial.expect(warned, "the log does not say which rule to add by hand")
    finally:
        client.delete_bucket_lifecycle(S3Server.bucket)


def _rules(client: Minio) -> str:
    """Returns the lifecycle rules of the bucket as text."""
    found = client.get_bucket_lifecycle(S3Server.bucket)
    text = marshal(found) if found else ""
    return text.decode() if isinstance(text, bytes) else text


def _minio(system: System) -> Minio:
    """Returns a client of the store itself, without a proxy."""
    return Minio(
        f"{HOST}:{system.s3.port}",
        access_key=system.s3.access_key,
        secret_key=system.s3.secret_key,
        secure=False,
        region="us-east-1",
        http_client=urllib3.PoolManager(timeout=10.0),
    )


def begun_again(system: System) -> int:
    """Returns how often a chunk was restarted because of a missing or damaged object."""
    events = [str(line.get("event", "")) for line in system.lines()]
    return sum("starts again from the prompt: " in event or "are made again: " in event for event in events)


def refused(system: System, submission: Submission) -> bool:
    """Returns whether the gateway refuses to serve the pictures of a job."""
    with system.client() as client:
        try:
            list(client.download(submission.job))
        except SmaltiError:
            return True
    return False


def harm_object(system: System, key: str, harm: str) -> None:
    """Deletes an object, changes its content without the checksum, or replaces it with another object."""
    if harm == "missing":
        system.store.delete(key)
        return
    if harm == "other":
        system.store.put(key, b"something else")
        return
    client = _minio(system)
    found = system.store.stat(key)
    if found is None:
        raise AssertionError(f"{key} is missing, so it cannot be damaged")
    content = bytearray(system.store.get(key))
    content[len(content) // 2] ^= 1
    client.put_object(
        S3Server.bucket,
        key,
        io.BytesIO(bytes(content)),
        len(content),
        metadata={CHECKSUM: found.sha256 or ""},
    )
