"""Signals become an event: none raises an exception where the main thread happens to be, and none is lost."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from harness.processes import run_at_terminal, started
from harness.waiting import wait_until
from smalti.entrance import signals
from smalti.entrance.signals import URGENT_SECONDS

SOON = URGENT_SECONDS - 2
"""Time in which a process that ends at once has ended, on a busy machine."""

BEGUN = """
import ctypes, sys, threading, time
from smalti.entrance import begin, signals
begin("smalti test")
"""
# `sleep` of the C library: the main thread runs no bytecode, as in a compiler.
STUCK = """
with signals.deferred():
    print("begun", flush=True)
    ctypes.CDLL(None).sleep(100)
    ctypes.CDLL(None).sleep(100)
    ctypes.CDLL(None).sleep(100)
    ctypes.CDLL(None).sleep(100)
"""
# Every bytecode of the main thread is one in a lock of a pool or of a queue.
LOCKED = """
from concurrent.futures import ThreadPoolExecutor
with signals.deferred() as stopping, ThreadPoolExecutor(2) as threads:
    print("begun", flush=True)
    while not stopping.requested:
        threads.submit(int).result()
    for _ in range(200):
        threads.submit(int).result()
print("ended in order")
"""


@pytest.fixture(autouse=True)
def hangup() -> Iterator[None]:
    """Children get the end of a terminal, also where the tests themselves ignore it, under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@contextmanager
def running(program: str) -> Iterator["subprocess.Popen[str]"]:
    """Runs a program until it has printed its first line."""
    pipe = subprocess.PIPE
    with started([sys.executable, "-c", BEGUN + program], stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        yield process


def press(*numbers: signal.Signals) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_before_anything_has_begun_a_signal_ends_the_process(number: signal.Signals) -> None:
    with running('print("begun", flush=True); time.sleep(100)') as process:
        process.send_signal(number)
        _, error = process.communicate(timeout=SOON)
    assert process.returncode == 128 + number
    assert error == "smalti test: interrupted; every file that was written is complete\n"


@pytest.mark.process
def test_service_that_has_not_begun_has_nothing_to_finish() -> None:
    program = 'signals._installed._status = 0; print("begun", flush=True); time.sleep(100)'
    with running(program) as process:
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=SOON)[1] == ""
    assert process.returncode == 0


@pytest.mark.process
def test_no_signal_raises_within_a_lock() -> None:
    random.seed(5)
    for _ in range(20):
        with running(LOCKED) as process:
            time.sleep(random.uniform(0, 0.02))
            process.send_signal(signal.SIGINT)
            output, error = process.communicate(timeout=60)
        assert (process.returncode, output, error) == (0, "ended in order\n", "")


@pytest.mark.process
def test_second_signal_ends_the_process_within_seconds_and_the_third_kills_it() -> None:
    with running(STUCK) as process:
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        _, error = process.communicate(timeout=URGENT_SECONDS + 20)
        assert time.monotonic() - began > URGENT_SECONDS - 1
    assert (process.returncode, error) == (130, "smalti test: did not end in time, and was ended\n")
    with running(STUCK) as process:
        for _ in range(3):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.1)  # Signals of one number that wait for the process count once.
        _, error = process.communicate(timeout=SOON)
    assert (process.returncode, error) == (143, "smalti test: was ended at once\n")


@pytest.mark.process
def test_process_that_is_ended_leaves_no_children() -> None:
    program = (
        "import subprocess\nchild = subprocess.Popen(['sh', '-c', 'sleep 100 & echo $!; wait'], stdout=-1)\n"
    )
    program += "print('begun', flush=True); print(child.pid, child.stdout.readline().decode(), flush=True)\n"
    program += "time.sleep(100)"
    with running(program) as process:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 2
        assert all(map(psutil.pid_exists, pids))
        process.send_signal(signal.SIGTERM)
        assert process.wait(SOON) == 143
        wait_until(lambda: not any(map(psutil.pid_exists, pids)))


@pytest.mark.process
def test_terminal_has_its_cursor_again() -> None:
    program = (
        f"{BEGUN}print('\\x1b[?25l', end='', flush=True); import os; os.kill(os.getpid(), 2)\ntime.sleep(9)"
    )
    status, shown = run_at_terminal([sys.executable, "-c", program], environment={"TERM": "xterm"})
    assert status == 130
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")


@pytest.mark.process
def test_program_that_outlives_its_terminal_ignores_its_end() -> None:
    program = f"import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n{BEGUN}"
    program += 'signal.raise_signal(signal.SIGHUP); time.sleep(0.2); print("goes on")'
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "goes on\n")


def test_look_raises_where_it_is_asked() -> None:
    before = [signal.getsignal(number) for number in signals.ENDING]
    with signals.deferred() as stopping:
        signals.check()
        press(signal.SIGTERM)
        assert stopping.requested
        assert stopping.wait(10)
        assert stopping.exit_status == 143
        with pytest.raises(KeyboardInterrupt):
            signals.check()
        with signals.deferred() as inner:
            assert inner is stopping
    assert [signal.getsignal(number) for number in signals.ENDING] == before
    signals.check()  # In a program of somebody else nothing is left.


def test_calls_are_made_from_another_thread() -> None:
    called: list[tuple[int, bool]] = []

    def note(number: int) -> None:
        called.append((number, threading.current_thread() is threading.main_thread()))
        raise RuntimeError("must not end the thread")

    with signals.deferred(counted=()) as stopping:
        with stopping.calling(note):
            press(signal.SIGINT)
            wait_until(lambda: len(called) == 1)
            press(signal.SIGTERM)
            wait_until(lambda: len(called) == 2)
            press(signal.SIGTERM)  # The signals of a command are not counted: three of them end nothing.
            wait_until(lambda: len(called) == 3)
        assert called == [(signal.SIGINT, False), (signal.SIGTERM, False), (signal.SIGTERM, False)]
        earlier: list[int] = []
        with stopping.calling(earlier.append):
            assert earlier == [signal.SIGINT]
        with stopping.calling(earlier.append, earlier=False):
            assert earlier == [signal.SIGINT]


def test_other_threads_receive_nothing() -> None:
    found: list[bool] = []

    def work() -> None:
        with signals.deferred() as stopping:
            found.append(stopping.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]
