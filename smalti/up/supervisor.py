"""Keeps servers running: starts them, waits until they answer, starts again what dies, and stops them in order."""

import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from smalti.errors import ServerStartError
from smalti.up.servers import Server

PROBE_SECONDS = 0.1
"""How often a server that does not answer yet is asked."""
FIRST_PAUSE, MAX_PAUSE_SECONDS = 0.5, 30.0
"""How long to wait before a server that has died is started again; twice as long after every time."""
STEADY_SECONDS = 60.0
"""A server that has answered for so long has a new first pause."""
MAX_STARTS = 4
"""How often a server is started that has never answered."""
UNUSABLE = 2
"""The exit code of a process whose settings, or whose model, cannot be used: starting it again is of no use."""

Tell = Callable[[str], None]


class Kept:
    """One server that is kept running, by a thread of its own."""

    def __init__(self, server: Server, needs: Sequence["Kept"], tell: Tell) -> None:
        """Makes it; `begin` starts it.

        Args:
            server: the server.
            needs: what must have answered before it is started first.
            tell: is told when it dies, and when it answers again.
        """
        self.server = server
        self._needs = needs
        self._tell = tell
        self._ending = threading.Event()
        # Held while the server is started and while it is stopped, so that none is started after its stop.
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._keep, name=f"keep-{server.name}", daemon=True)
        self.ready = threading.Event()
        """Set when it answers for the first time."""
        self.failure: ServerStartError | None = None
        """Why it has been given up before it answered."""

    def begin(self) -> None:
        """Starts the server, now or when what it needs answers."""
        self._thread.start()

    def stop(self) -> None:
        """Lets the server end by itself, and past its time kills it."""
        self._ending.set()
        with self._lock:
            self.server.stop()
        if self._thread.is_alive():
            self._thread.join()

    def kill(self) -> None:
        """Ends the server at once; one that is being stopped ends sooner."""
        self._ending.set()
        self.server.kill()

    def _keep(self) -> None:
        for need in self._needs:
            while not need.ready.wait(PROBE_SECONDS):
                if self._ending.is_set() or need.failure:
                    return
        pause = FIRST_PAUSE
        deaths = 0
        while not self._ending.is_set():
            answered, ended = self._run_once()
            if self._ending.is_set():
                return
            deaths += 1
            if not self.ready.is_set() and (deaths == MAX_STARTS or ended == f"exit code {UNUSABLE}"):
                self.failure = ServerStartError(
                    f"{self.server.name} cannot start ({ended}): {self.server.log_end()}"
                )
                return
            if answered is not None and time.monotonic() - answered > STEADY_SECONDS:
                pause = FIRST_PAUSE
            self._tell(
                f"{self.server.name} has died ({ended}) and is started again in {pause:.1f} s: {self.server.log}"
            )
            self._ending.wait(pause)
            pause = min(MAX_PAUSE_SECONDS, 2 * pause)

    def _run_once(self) -> tuple[float | None, str]:
        """Runs the server until it ends; returns since when it has answered, if it has, and how it ended."""
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
                    self._tell(f"{self.server.name} answers again")
                self.ready.set()
                break
            self._ending.wait(PROBE_SECONDS)
        code = self.server.wait()
        how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        return answered, how


class Supervisor:
    """Servers that belong together."""

    def __init__(self, groups: Sequence[Sequence[Server]], tell: Tell) -> None:
        """Makes it; `begin` starts the servers.

        Args:
            groups: a group is started when the groups before it answer, unless it is told not to wait, and stopped
                before they are.
            tell: is told what happens, a line at a time, from any thread.
        """
        self.groups: list[list[Kept]] = []
        for group in groups:
            needs = self.groups[0] if self.groups else []
            self.groups.append([Kept(server, needs, tell) for server in group])
        self._kept = [kept for group in self.groups for kept in group]

    def begin(self) -> None:
        """Starts the servers, and does not wait."""
        for kept in self._kept:
            kept.begin()

    def wait_until_ready(self, until: threading.Event) -> bool:
        """Waits until every server has answered once; returns whether they have, or the event has come first.

        Raises:
            ServerStartError: a server cannot be started, or does not answer in its time.
        """
        began = time.monotonic()
        for kept in self._kept:
            while not kept.ready.wait(PROBE_SECONDS):
                if until.is_set():
                    return False
                for other in self._kept:
                    if other.failure is not None:
                        raise other.failure
                if time.monotonic() - began > kept.server.start_seconds:
                    raise ServerStartError(f"{kept.server.name} does not answer: {kept.server.log_end()}")
        return True

    def stop(self) -> None:
        """Stops the servers, the last group first."""
        for group in reversed(self.groups):
            with ThreadPoolExecutor(len(group), thread_name_prefix="stop") as threads:
                list(threads.map(Kept.stop, group))

    def kill(self) -> None:
        """Ends all servers at once."""
        for kept in reversed(self._kept):
            kept.kill()
