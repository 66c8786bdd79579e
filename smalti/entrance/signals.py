"""Signals that ask a process to end, turned into an event.

Python calls a handler between any two bytecodes of the main thread: within a lock of a pool, within gRPC, in a callback
of the garbage collector, where an exception leaves a lock taken or is lost. Here no handler raises. The interpreter
writes the number of each signal to a pipe (`signal.set_wakeup_fd`), even while the main thread computes outside Python,
and a thread reads it. The main thread ends where it looks: `check` raises KeyboardInterrupt.

What a signal does depends on the block that runs:

* At first, and in `at_once`: nothing has begun that needs finishing, so the process ends.
* In `deferred`: the first signal asks for the end, after the second the process ends within `URGENT_SECONDS`, and the
  third kills it, whatever its threads do.
"""

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final, NoReturn

__all__ = ["ENDING", "URGENT_SECONDS", "Stopping", "at_once", "begin", "check", "deferred"]

ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals that ask for the end."""
URGENT_SECONDS: Final = 4.0
"""Time after the second signal in which a process may still end by itself."""

_CLOSE: Final = 0
"""No signal has this number; it ends the thread."""
_SHOW_CURSOR: Final = b"\r\x1b[?25h\n"

Call = Callable[[int], object]


class Stopping:
    """Whether this process was asked to end."""

    def __init__(self, name: str, *, status: int | None, at_once: bool) -> None:
        """Receives nothing yet; see `begin`.

        Args:
            name: begins the line that is printed when the process is ended.
            status: the exit status of a process that ends at once; None for 128 and the signal's number.
            at_once: whether a signal ends the process.
        """
        self._name = name
        self._status = status
        self._at_once = at_once
        self.whole_process = at_once
        """Whether the process is a program of Smalti, and not somebody else's that uses it."""
        self._counted: Collection[int] = ENDING
        self._presses = 0
        self._deadline: float | None = None
        self._calls: list[Call] = []
        self._noted = False
        self._event = threading.Event()
        self.number = signal.SIGINT
        """The first signal that arrived."""

    @property
    def requested(self) -> bool:
        """Whether a signal has arrived."""
        return self._noted or self._event.is_set()

    @property
    def exit_status(self) -> int:
        """The exit status of a command that a signal ended, as shells have it."""
        return 128 + self.number

    def wait(self, seconds: float | None = None) -> bool:
        """Waits until a signal has arrived; returns False if the time is over before."""
        return self._event.wait(seconds)

    @contextmanager
    def calling(self, call: Call, *, earlier: bool = True) -> Iterator[None]:
        """Calls a function with the number of each signal while the block runs, from another thread.

        Args:
            call: must be quick.
            earlier: whether to report at the beginning a signal that has arrived before.
        """
        self._calls.append(call)
        try:
            if earlier and self.requested:
                call(self.number)
            yield
        finally:
            self._calls.remove(call)

    def _note(self, number: int, frame: FrameType | None) -> None:
        """The handler. It takes no lock, which the main thread may hold."""
        if not self.requested:
            self.number = signal.Signals(number)
        self._noted = True

    def _read(self, pipe: int) -> None:
        """Reads the numbers of signals until the pipe says that there will be no more."""
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        while True:
            left = None if self._deadline is None else 1000 * max(0.0, self._deadline - time.monotonic())
            if not poll.poll(left):
                self._kill("did not end in time, and was ended")
            for number in os.read(pipe, 64):
                if number == _CLOSE:
                    return
                if number in ENDING:
                    self._receive(number)

    def _receive(self, number: int) -> None:
        if not self._event.is_set():
            self.number = signal.Signals(number)
            self._event.set()
        for call in tuple(self._calls):
            with suppress(Exception):  # This thread must go on.
                call(number)
        if self._at_once:
            self._kill("interrupted; every file that was written is complete", self._status)
        if number in self._counted:
            self._presses += 1
        if self._presses >= 3:
            self._kill("was ended at once")
        if self._presses == 2 and self._deadline is None:
            self._deadline = time.monotonic() + URGENT_SECONDS

    def _kill(self, problem: str, status: int | None = None) -> NoReturn:
        """Ends the process whatever its threads do, with its children, and with the terminal as it was."""
        for child in _descendants(os.getpid()):
            with suppress(OSError):
                os.kill(child, signal.SIGKILL)
        for stream in (1, 2):
            _write(stream, _SHOW_CURSOR, terminal=True)
        if status is None:
            _write(2, f"{self._name}: {problem}\n".encode())
            status = self.exit_status
        os._exit(status)


def _write(stream: int, content: bytes, *, terminal: bool = False) -> None:
    """Writes to a stream, unless it is closed, full or stopped; with `terminal`, only to a terminal with a cursor."""
    try:
        if terminal and (not os.isatty(stream) or os.environ.get("TERM", "dumb") == "dumb"):
            return
        poll = select.poll()
        poll.register(stream, select.POLLOUT)
        if poll.poll(0):
            os.write(stream, content)
    except OSError:
        pass


def _descendants(parent: int) -> list[int]:
    """Returns the processes that a process has started, and those that they have; none where Linux does not tell."""
    found: list[int] = []
    with suppress(OSError):
        for task in os.listdir(f"/proc/{parent}/task"):  # noqa: PTH208 - pathlib is too large for the first module.
            with suppress(OSError), open(f"/proc/{parent}/task/{task}/children") as file:  # noqa: PTH123
                children = [int(child) for child in file.read().split()]
                found += [each for child in children for each in (child, *_descendants(child))]
    return found


_installed: Stopping | None = None


def begin(name: str, *, status: int | None = None) -> None:
    """Receives signals from now on, for as long as the process runs; must be called in the main thread.

    Args:
        name: begins the line that is printed when the process is ended.
        status: the exit status after a signal before anything has begun; None for 128 and the signal's number.
    """
    if _installed is None:
        _install(Stopping(name, status=status, at_once=True))


@contextmanager
def deferred(counted: Collection[int] = ENDING) -> Iterator[Stopping]:
    """Lets signals ask for the end while the block runs, in place of ending the process.

    Without `begin`, in a program of somebody else, signals are received while the block runs; in another thread than
    the main one they are not received at all.

    Args:
        counted: the signals of which the second and the third hurry the end; none for a process whose signals are
            those of another program that it runs.
    """
    if _installed is not None:
        with _mode(_installed, at_once=False, counted=counted):
            yield _installed
        return
    stopping = Stopping("smalti", status=None, at_once=False)
    stopping._counted = counted
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return
    remove = _install(stopping)
    try:
        yield stopping
    finally:
        remove()


@contextmanager
def at_once() -> Iterator[None]:
    """Lets a signal end the process while the block runs, which must leave nothing half-done, such as a long import.

    Only in a program that called `begin`; elsewhere the block runs as it is.
    """
    check()
    if _installed is None or not _installed.whole_process:
        yield
        return
    with _mode(_installed, at_once=True, counted=ENDING):
        yield


def check() -> None:
    """Raises KeyboardInterrupt if this process was asked to end; a place where nothing is lost by it."""
    if _installed is not None and _installed.requested:
        raise KeyboardInterrupt


@contextmanager
def _mode(stopping: Stopping, *, at_once: bool, counted: Collection[int]) -> Iterator[None]:
    before = stopping._at_once, stopping._counted
    stopping._at_once, stopping._counted = at_once, counted
    try:
        yield
    finally:
        stopping._at_once, stopping._counted = before


def _install(stopping: Stopping) -> Callable[[], None]:
    """Receives signals; returns a function that restores what was before."""
    global _installed
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    _installed = stopping
    fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    # A program that was started to outlive its terminal, by nohup, ignores its end.
    numbers = [
        number
        for number in ENDING
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN
    ]
    before = {number: signal.signal(number, stopping._note) or signal.SIG_DFL for number in numbers}
    thread = threading.Thread(target=stopping._read, args=(reader,), name="signals", daemon=True)
    thread.start()

    def remove() -> None:
        global _installed
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(fd)
        os.write(writer, bytes([_CLOSE]))
        thread.join()
        os.close(reader)
        os.close(writer)
        _installed = None

    return remove
