"""Tests of the thread in which an engine computes."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from harness.waiting import wait_until
from smalti.errors import EngineFailedError, InvalidInputError, OverloadedError, RequestFailedError
from smalti.service.compute import ComputeThread


@pytest.fixture
def compute() -> Iterator[ComputeThread]:
    thread = ComputeThread(max_permits=2, stall_seconds=60, check=lambda: None)
    yield thread
    thread.close()


def broken() -> None:
    raise MemoryError("the device is gone")


def test_tasks_run_one_at_a_time(compute: ComputeThread) -> None:
    running, most = 0, 0

    def count(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.01)
        running -= 1
        return number

    futures = [compute.submit(lambda number=number: count(number)) for number in range(5)]  # type: ignore[misc]
    assert [future.result(10) for future in futures] == [0, 1, 2, 3, 4]
    assert most == 1


def test_permits_are_limited(compute: ComputeThread) -> None:
    with compute.permit(), compute.permit():
        with pytest.raises(OverloadedError) as caught, compute.permit():
            pass
        assert caught.value.retry_after >= 1
    with compute.permit():
        pass


def test_cancelled_task_does_not_run(compute: ComputeThread) -> None:
    go_on, computed = threading.Event(), []
    first = compute.submit(go_on.wait)
    second = compute.submit(lambda: computed.append(2))
    assert second.cancel()
    go_on.set()
    first.result(10)
    assert compute.run(lambda: 3) == 3
    assert not computed


def test_failure_over_one_request_ends_that_request_alone() -> None:
    compute = ComputeThread(max_permits=2, stall_seconds=60, check=lambda: None)
    for _ in range(4):
        with pytest.raises(RequestFailedError) as failed:
            compute.run(broken)
        assert isinstance(failed.value.__cause__, MemoryError)
    assert compute.healthy
    assert compute.run(lambda: 1) == 1
    compute.close()


def test_engine_that_fails_without_a_request_too_is_dead() -> None:
    compute = ComputeThread(max_permits=2, stall_seconds=60, check=broken)
    with pytest.raises(EngineFailedError) as failed:
        compute.run(broken)
    assert failed.value.begun
    assert isinstance(compute.failure, MemoryError)
    with pytest.raises(EngineFailedError) as refused:
        compute.run(lambda: 1)
    assert not refused.value.begun
    compute.close()


def test_invalid_input_does_not_count_as_an_engine_failure(compute: ComputeThread) -> None:
    def refuse() -> None:
        raise InvalidInputError("prompt", "is empty")

    for _ in range(4):
        with pytest.raises(InvalidInputError):
            compute.run(refuse)
    assert compute.healthy


def test_hanging_engine_fails_running_and_waiting_tasks() -> None:
    compute = ComputeThread(max_permits=2, stall_seconds=0.05, check=lambda: None)
    go_on = threading.Event()
    running, waiting = compute.submit(go_on.wait), compute.submit(lambda: 1)
    wait_until(lambda: not compute.healthy)
    for future in (running, waiting):
        with pytest.raises(EngineFailedError):
            future.result(10)
    go_on.set()
    compute.close()


def test_closing_fails_waiting_tasks() -> None:
    compute = ComputeThread(max_permits=2, stall_seconds=60, check=lambda: None)
    go_on = threading.Event()
    running, waiting = compute.submit(go_on.wait), compute.submit(lambda: 1)
    wait_until(lambda: compute.active)
    closing = threading.Thread(target=compute.close)
    closing.start()
    with pytest.raises(EngineFailedError):
        waiting.result(10)
    go_on.set()
    closing.join(10)
    assert running.result(10)
    with pytest.raises(EngineFailedError):
        compute.submit(lambda: 1)


COMPUTES = """
import sys, time
import jax, jax.numpy as jnp
from smalti.service.compute import ComputeThread

step = jax.jit(lambda x: x @ x * 0.001)
first = jnp.ones((300, 300))
step(first).block_until_ready()

def compute():
    end, x = time.monotonic() + 3, first
    while time.monotonic() < end:
        x = step(x)
        x.block_until_ready()

stall = float(sys.argv[1])
threads = [ComputeThread(max_permits=1, stall_seconds=stall, check=lambda: None) for _ in range(4)]
for thread in threads:
    thread.submit(compute)
time.sleep(0.5)
assert all(thread.healthy is (stall > 1) for thread in threads)
"""


@pytest.mark.process
@pytest.mark.parametrize("stall", ["60", "0.1"])
def test_interpreter_ends_in_order_while_a_computation_runs(stall: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", COMPUTES, stall], capture_output=True, text=True, timeout=120, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
