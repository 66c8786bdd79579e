"""Keeps servers running: starts them in order, restarts those that die, and stops them in reverse order."""

import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from smalti.errors import ServerStartError
from smalti.up.servers import Server

PROBE_SECONDS = 0.1
"""Interval between probes of a server that does not answer yet."""
FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.5, 30.0
"""Delay before a server that died is restarted; doubled after each time."""
STEADY_SECONDS = 60.0
"""After answering for this long, a server starts again from the first delay."""
MAX_STARTS = 4
"""Starts of a server that never answers before it is given up."""
FIRST_WORD_SECONDS, WORD_SECONDS = 30.0, 30.0
"""Time after which it is said what a start waits for, and the interval at which that is repeated."""
UNUSABLE = 2
"""The exit code of a service with an invalid setting or model, which a restart does not fix."""

Report = Callable[[str], None]
Move = Callable[[Server], Sequence[str]]


class KeptServer:
    """A server that a thread keeps running."""

    def __init__(self, server: Server, needs: Sequence["KeptServer"], *, report: Report, move: Move) -> None:
        """Creates the keeper without starting the server.

        Args:
            server: the server.
            needs: servers that must have answered before this one is started.
            report: called when the server dies, and when it answers again.
            move: called when the server has ended; takes other ports instead of lost ones, and returns what to report.
        """
        self.server = server
        self._needs = needs
        self._report = report
        self._move = move
        self._renewed = False
        self._ending = threading.Event()
        # Held while the server is started or stopped, so that it is not started after its stop.
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._keep, name=f"keep-{server.name}", daemon=True)
        self.ready = threading.Event()
        """Set when the server answers for the first time."""
        self.failure: ServerStartError | None = None
        """Why the server was given up before it answered; None if it was not."""

    def begin(self) -> None:
        """Starts the server as soon as the servers that it needs answer."""
        self._thread.start()

    def stop(self) -> None:
        """Stops the server; kills it when that takes too long."""
        self._ending.set()
        with self._lock:
            self.server.stop()
        if self._thread.is_alive():
            self._thread.join()

    def renew(self) -> None:
        """Restarts the server if its settings have changed since its start."""
        with self._lock:
            if self.server.outdated and not self._ending.is_set():
                self._renewed = True
                self.server.stop()

    def kill(self) -> None:
        """Kills the server, even while it is being stopped."""
        self._ending.set()
        self.server.kill()

    def _keep(self) -> None:
        for need in self._needs:
            while not need.ready.wait(PROBE_SECONDS):
                if self._ending.is_set() or need.failure:
                    return
        pause = FIRST_PAUSE_SECONDS
        crashes = moves = 0
        while not self._ending.is_set():
            answered, ended = self._run_once()
            if self._ending.is_set():
                return
            if self._renewed:
                self._renewed = False
                continue
            moved = self._move(self.server)
            for line in moved:
                self._report(line)
            # What moves again and again dies of something else.
            moves = moves + 1 if moved else 0
            if moved and moves < MAX_STARTS:
                continue
            crashes += 1
            if not self.ready.is_set() and (crashes == MAX_STARTS or ended == f"exit code {UNUSABLE}"):
                self.failure = ServerStartError(
                    f"{self.server.name} cannot start ({ended}): {self.server.log_end()}"
                )
                return
            if answered is not None and time.monotonic() - answered > STEADY_SECONDS:
                pause = FIRST_PAUSE_SECONDS
            self._report(
                f"{self.server.name} has died ({ended}); restarting in {pause:.1f} s; see {self.server.log}"
            )
            self._ending.wait(pause)
            pause = min(MAX_PAUSE_SECONDS, 2 * pause)

    def _run_once(self) -> tuple[float | None, str]:
        """Runs the server until it ends; returns the time at which it first answered, or None, and how it ended."""
        answered: float | None = None
        with self._lock:
            if self._ending.is_set():
                return None, ""
            try:
                self.server.launch()
            except (ServerStartError, OSError) as error:
                return None, str(error)
        while self.server.running and not self._ending.is_set():
            if self.server.answers():
                answered = time.monotonic()
                if self.ready.is_set():
                    self._report(f"{self.server.name} answers again")
                self.ready.set()
                break
            self._ending.wait(PROBE_SECONDS)
        code = self.server.wait()
        how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        return answered, how


class Supervisor:
    """Runs groups of servers that depend on each other."""

    def __init__(self, groups: Sequence[Sequence[Server]], *, report: Report, move: Move) -> None:
        """Creates the supervisor without starting the servers.

        Args:
            groups: all groups wait for the first to answer; they are stopped in reverse order.
            report: called with one line for each event, from any thread.
            move: called with a server that has ended, from any thread; takes other ports instead of those that another
                program has taken meanwhile, and returns what to report.
        """
        self._move_server = move
        self._report = report
        self.groups: list[list[KeptServer]] = []
        for group in groups:
            needs = self.groups[0] if self.groups else []
            self.groups.append(
                [KeptServer(server, needs, report=report, move=self._move) for server in group]
            )
        self._kept = [kept for group in self.groups for kept in group]

    def begin(self) -> None:
        """Starts the servers without waiting for them."""
        for kept in self._kept:
            kept.begin()

    def wait_until_ready(self, stopped: Callable[[], bool]) -> bool:
        """Waits until every server has answered once; returns False if `stopped` does before.

        Says what it waits for, when that takes long.

        Raises:
            ServerStartError: a server cannot be started, or does not answer in time.
        """
        began = time.monotonic()
        said = began + FIRST_WORD_SECONDS
        for kept in self._kept:
            while not kept.ready.wait(PROBE_SECONDS):
                if stopped():
                    return False
                for other in self._kept:
                    if other.failure is not None:
                        raise other.failure
                now = time.monotonic()
                if now - began > kept.server.start_seconds:
                    raise ServerStartError(f"{kept.server.name} does not answer: {kept.server.log_end()}")
                if now > said:
                    said = now + WORD_SECONDS
                    self._report(self._waiting(now - began))
        return True

    def _move(self, server: Server) -> Sequence[str]:
        """Takes other ports for a server, and restarts those that know the old ones."""
        lines = self._move_server(server)
        if lines:
            with ThreadPoolExecutor(len(self._kept), thread_name_prefix="renew") as threads:
                list(threads.map(KeptServer.renew, self._kept))
        return lines

    def _waiting(self, seconds: float) -> str:
        """Returns which servers have not answered yet, with the end of the log of the first."""
        missing = [kept.server for kept in self._kept if not kept.ready.is_set()]
        names = ", ".join(server.name for server in missing)
        end = f"; {missing[0].name} says: {missing[0].log_end(1)}" if missing else ""
        return f"waiting for {names} for {seconds:.0f} s{end}"

    def stop(self) -> None:
        """Stops the servers, the last group first."""
        for group in reversed(self.groups):
            with ThreadPoolExecutor(len(group), thread_name_prefix="stop") as threads:
                list(threads.map(KeptServer.stop, group))

    def kill(self) -> None:
        """Kills all servers."""
        for kept in reversed(self._kept):
            kept.kill()
