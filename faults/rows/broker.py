"""Faults of the broker, duplicate messages, and invalid ones."""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import redis

from faults.accounting import Submission
from faults.layout import STAGE_NAMES, STAGES
from faults.matrix import Trial, row, sleeping
from faults.system import PATIENCE
from harness.objects import key_of
from harness.proxy import NetworkFault
from harness.queue import dead, gather, task
from harness.servers import RabbitMQServer, Server
from harness.signing import certificate
from harness.waiting import wait_until
from smalti.messages import (
    MAX_CLOCK_SKEW_SECONDS,
    MAX_MESSAGE_BYTES,
    Chunk,
    EncodeTask,
    GenerateTask,
    Stage,
    queue_name,
)
from smalti.queue import BrokerPublisher
from smalti.storage import JobKeys, ObjectRef

PAUSE_SECONDS, SHORT_PAUSE_SECONDS = 30.0, 4.0
HELD_SECONDS = 5.0
"""Time for which a message of a newer version is held back."""
SERVED = (*map(Stage, STAGE_NAMES.values()), Stage.EVENTS)
"""Stages with a process. The refiner has none here, so nothing reads its queue."""


@row(
    "5",
    "broker killed and started again; stopped for 30 s",
    "no accepted job is lost; jobs are accepted meanwhile",
)
def broker_away(trial: Trial) -> None:
    """Submits jobs before, while and after the broker is away."""
    system, account = trial.system, trial.account
    account.submit_many([f"row 5 before {number}" for number in range(trial.jobs)])
    system.broker.kill()
    account.submit_many([f"row 5 killed {number}" for number in range(trial.jobs // 2)])
    system.broker.start()
    account.submit_many([f"row 5 back {number}" for number in range(trial.jobs // 2)])
    system.broker.pause()
    began = time.monotonic()
    account.submit_many([f"row 5 paused {number}" for number in range(trial.jobs // 2)])
    trial.notes.append(
        f"{trial.jobs // 2} jobs were accepted in {time.monotonic() - began:.1f} s while the broker hung"
    )
    time.sleep(PAUSE_SECONDS if trial.long else SHORT_PAUSE_SECONDS)
    system.broker.resume()
    trial.expect_states("succeeded")


@row(
    "5 alarm",
    "memory alarm of RabbitMQ: it takes nothing from publishers",
    "messages are held, not delivered again; nothing is lost or in a dead-letter queue",
    broker="rabbitmq",
)
def alarm(trial: Trial) -> None:
    """Raises the alarm while jobs run and others are submitted."""
    system, account = trial.system, trial.account
    assert isinstance(system.broker, RabbitMQServer)
    for stage in SERVED:
        dead(system.broker_settings(), stage)
    account.submit_many([f"row 5 before the alarm {number}" for number in range(trial.jobs)])
    with system.broker.alarm():
        account.submit_many([f"row 5 alarm {number}" for number in range(trial.jobs // 2)])
        time.sleep(PAUSE_SECONDS if trial.long else SHORT_PAUSE_SECONDS)
    trial.expect_states("succeeded")
    buried = [stage for stage in SERVED if dead(system.broker_settings(), stage)]
    trial.expect(not buried, f"there are dead letters of {', '.join(buried)}")


@row(
    "5 refuses",
    "broker that answers with errors: a read-only replica, full (Valkey); without rights (RabbitMQ)",
    "no process ends; jobs are accepted meanwhile, and done afterwards",
)
def broker_refuses(trial: Trial) -> None:
    """Makes the broker refuse what it is asked, one way after the other, while jobs run and others are submitted."""
    system, account, began = trial.system, trial.account, time.time()
    for name, refusing in _refusals(system.broker).items():
        account.submit_many([f"row 5 before {name} {number}" for number in range(trial.jobs // 2)])
        with refusing:
            account.submit_many([f"row 5 {name} {number}" for number in range(trial.jobs // 4)])
            time.sleep(PAUSE_SECONDS if trial.long else SHORT_PAUSE_SECONDS)
        trial.expect_states("succeeded")
    ended = [end.name for end in system.ends if end.when >= began]
    trial.expect(not ended, f"processes ended: {', '.join(ended)}")


def _refusals(broker: Server) -> dict[str, AbstractContextManager[None]]:
    """Returns the ways in which a broker refuses, by name; each does so while its block runs."""
    if isinstance(broker, RabbitMQServer):

        def take_rights() -> None:
            broker.control("set_permissions", "guest", "^$", "^$", "^$")
            broker.control("close_all_connections", "rights have changed")

        give_rights = partial(broker.control, "set_permissions", "guest", ".*", ".*", ".*")
        return {"rights": _undone(take_rights, give_rights)}
    client = redis.Redis.from_url(broker.url)
    return {
        "replica": _undone(lambda: client.replicaof("127.0.0.1", "1"), lambda: client.replicaof("NO", "ONE")),
        "full": _undone(
            lambda: client.config_set("maxmemory", "1"), lambda: client.config_set("maxmemory", "0")
        ),
    }


@contextmanager
def _undone(harm: Callable[[], object], repair: Callable[[], object]) -> Iterator[None]:
    harm()
    try:
        yield
    finally:
        repair()


@row(
    "6",
    "connection to the broker cut when a chunk is sent; answer of the broker lost",
    "the message is sent again; duplicates are harmless",
)
def broker_out_of_reach(trial: Trial) -> None:
    """The connections to the broker are cut, then lose responses: first the gateway's, then those of the stages."""
    system, account = trial.system, trial.account
    for side in ("gateways", "stages"):
        for fault in (NetworkFault(cut=True), NetworkFault(lose_responses=True)):
            name = "cut" if fault.cut else "lose_responses"
            before = account.submit_many(
                [f"row 6 before {side} {name} {number}" for number in range(trial.jobs // 4)]
            )
            with system.faulty(side, "broker", fault):
                during = account.submit_many(
                    [f"row 6 {side} {name} {number}" for number in range(trial.jobs // 4)]
                )
                time.sleep(5 if trial.long else 2)  # The duration of the fault.
            trial.expect_states("succeeded", *before, *during)


_DRAWING, _DRAWN_ONCE = sleeping("row 7", "generate.after-read", 3)
_ENCODING, _ENCODED_ONCE = sleeping("row 7", "encode.after-read", 3)


@row(
    "7",
    "three duplicates of a message at the same time",
    "the work is done once; the duplicates are counted",
    failpoints=(_DRAWING, _ENCODING),
)
def duplicates(trial: Trial) -> None:
    """Sends three copies of the message of a chunk that is being encoded, and of one that is being generated."""
    system, account = trial.system, trial.account
    suppressed = _suppressed(trial)
    encoded = account.submit(_ENCODED_ONCE, candidates=4)
    system.wait_until_reached(_ENCODING)
    copy = _encode_task(trial, encoded)
    _send(trial, [copy] * 3)
    drawn = account.submit(_DRAWN_ONCE, candidates=4)
    system.wait_until_reached(_DRAWING)
    found = system.store.stat(key_of(system.store, JobKeys(drawn.job).encoding))
    if found is None or found.sha256 is None:
        raise AssertionError("the encoding is missing")
    encoding = ObjectRef(key=found.key, sha256=found.sha256)
    copies = _encode_task(trial, drawn).next(encoding, drawn.prompt)
    _send(trial, [*copies] * 3)
    trial.expect_states("succeeded")
    # Copies that joined the sleeping delivery are counted when it ends.
    wait_until(partial(_has_suppressed, trial, suppressed + 6), PATIENCE)
    counts = system.executions()
    for submission, stage in ((encoded, "encode"), (drawn, "generate")):
        times = sum(
            count for (job, name, _), count in counts.items() if (job, name) == (submission.job, stage)
        )
        trial.expect(times == 1, f"{stage} of {submission.prompt!r} was done {times} times")
    trial.notes.append(f"{_suppressed(trial) - suppressed:.0f} duplicates were suppressed")


@row(
    "8",
    "messages that are not JSON, too large, of an unknown task or version, or with the key of another job",
    "they go to the dead-letter queues with the reason; no process ends; other jobs continue",
)
def poison(trial: Trial) -> None:
    """Sends rubbish to the queues of all stages that run, while jobs run."""
    system, account = trial.system, trial.account
    settings = system.broker_settings()
    for stage in SERVED:
        dead(settings, stage)
    processes = {name: process.pid for name, process in system.processes.items()}
    account.submit_many([f"row 8 before {number}" for number in range(trial.jobs // 2)])
    publisher = BrokerPublisher(settings)
    sent = {stage: _rubbish(publisher, stage) for stage in SERVED}
    publisher.close()
    account.submit_many([f"row 8 after {number}" for number in range(trial.jobs // 2)])
    trial.expect_states("succeeded")
    for stage, number in sent.items():
        found = _dead(trial, stage, number)
        trial.expect(len(found) == number, f"{len(found)} of {number} messages are in {stage}.dead")
        trial.expect(
            all("smalti_why_dead" in headers for _, headers in found),
            f"a message in {stage}.dead has no reason",
        )
    alive = {name: process.pid for name, process in system.processes.items()}
    trial.expect(alive == processes, "a process has ended")
    trial.notes.append(f"{sum(sent.values())} messages, all in the dead-letter queues")


def _signing(folder: Path) -> dict[str, str]:
    key, public = certificate(folder, "all")
    return {
        "SMALTI_BROKER_SIGNING_KEY": str(key),
        "SMALTI_BROKER_SIGNING_CERTIFICATE": str(public),
        "SMALTI_BROKER_SIGNING_TRUSTED": str(folder),
    }


@row(
    "8 signed",
    "unsigned messages with signing on",
    "they go to the dead-letter queues; signed messages are processed",
    prepare=_signing,
)
def unsigned(trial: Trial) -> None:
    """Sends messages that are valid except for the missing signature."""
    system, account = trial.system, trial.account
    settings = system.broker_settings()
    publisher = BrokerPublisher(settings)
    for number in range(3):
        publisher.publish(task(f"unsigned-{number}"))
    publisher.close()
    account.submit_many([f"row 8 signed {number}" for number in range(4)])
    trial.expect_states("succeeded")
    found = _dead(trial, Stage.ENCODE, 3)
    trial.expect(len(found) == 3, f"{len(found)} of 3 messages are in encode.dead")


_SLOW = [sleeping("row 15", "decode.after-read", 4, str(number)) for number in range(4)]


@row(
    "15",
    "work that takes longer than the visibility timeout and the lease",
    "a second worker does it too and writes the same bytes; the metrics show it",
    settings={"SMALTI_BROKER_VISIBILITY_TIMEOUT": "1", "SMALTI_GATEWAY_LEASE": "2"},
    services=(*STAGES, "decoder-2"),
    failpoints=tuple(failpoint for failpoint, _ in _SLOW),
)
def too_slow(trial: Trial) -> None:
    """Decoding takes four seconds; one second is allowed."""
    submitted = [trial.account.submit(prompt) for _, prompt in _SLOW]
    trial.expect_states("succeeded", *submitted)
    system = trial.system
    counted = _suppressed(trial)
    counted += sum(system.metric(name, "lease_losses_total") for name in system.gateways)
    counted += sum(system.metric(name, "redeliveries_total") for name in system.layout.services)
    trial.expect(counted > 0, "no metric shows it")
    trial.notes.append(f"the metrics show {counted:.0f} redeliveries, duplicates and lost leases")


def _dead(trial: Trial, stage: Stage, number: int) -> list[tuple[str, dict[str, Any]]]:
    """Waits until a number of messages is in the dead-letter queue of a stage, and takes them."""
    settings = trial.system.broker_settings()
    return gather(lambda: dead(settings, stage), lambda found: len(found) >= number)


def _has_suppressed(trial: Trial, number: float) -> bool:
    return _suppressed(trial) >= number


def _suppressed(trial: Trial) -> float:
    return sum(
        trial.system.metric(name, "duplicates_suppressed_total") for name in trial.system.layout.services
    )


def _encode_task(trial: Trial, submission: Submission) -> EncodeTask:
    """Returns the message that the gateway sent for a job of one chunk."""
    with trial.system.client() as client:
        job = client.get(submission.job)
    return task(
        job.id,
        submission.prompt,
        model=trial.system.model,
        lease=1,
        expires=job.expire_time.seconds,
        seed=submission.seed,
        chunks=(Chunk(chunk=0, candidates=tuple(range(submission.candidates))),),
    )


def _send(trial: Trial, messages: list[EncodeTask] | list[GenerateTask]) -> None:
    publisher = BrokerPublisher(trial.system.broker_settings())
    with ThreadPoolExecutor(len(messages)) as threads:
        list(threads.map(publisher.publish, messages))
    publisher.close()


def _rubbish(publisher: BrokerPublisher, stage: Stage) -> int:
    """Sends invalid messages to the queue of a stage; returns their number."""
    queue = queue_name(stage)
    good = json.loads(task("rubbish").to_json())
    foreign = {
        **{name: value for name, value in good.items() if name != "chunks"},
        "kind": "generate",
        "chunk": 0,
        "candidates": [0],
        "encoding": {"key": "jobs/other/encoding.safetensors", "sha256": "0" * 64},
    }
    texts = [
        "{",
        # One of a newer version is held back for a newer worker until it expires by every clock.
        json.dumps({**good, "version": 99, "expires": time.time() + HELD_SECONDS - MAX_CLOCK_SKEW_SECONDS}),
        json.dumps({**good, "prompt": "x" * MAX_MESSAGE_BYTES}),
        json.dumps({**good, "unknown": 1}),
        json.dumps(foreign),
    ]
    for text in texts:
        publisher.publish_text(stage, queue, text)
    other = Stage.RANK if stage is not Stage.RANK else Stage.ENCODE
    publisher.publish_text(other, queue, "{}")  # A task of another queue.
    publisher.publish_raw(queue, b"\x00\xff rubbish", "application/json", "utf-8", {})
    return len(texts) + 2
