"""Picks the chunks that are sent next: revisions have their own windows, and tenants take turns.

Inside a revision, interactive work comes first, and every eighth turn goes to batch work. Inside a priority, tenants
take turns by deficit round robin (Shreedhar and Varghese, 1995): in its turn a tenant may send as many candidates as
`SMALTI_GATEWAY_TURN` times its weight; what it does not use it keeps while it has work. So ten thousand jobs of one
tenant stand before the single job of another for at most one turn.

Each gateway keeps turns of its own, and shares nothing but the rows. That is enough: each serves a waiting tenant once
in each of its rounds, so what two gateways send together is as fair as what each sends. A chunk that another gateway
has sent meanwhile counts in the turn of its tenant here, too, which was served after all.

What it costs does not depend on how much waits. The index `chunks_of_revision` finds the next tenant, and the first
chunks of a tenant, without reading others; at most `MAX_TENANTS` are looked at together.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from sqlalchemy.orm import Session

from smalti.parameters import Priority
from smalti.queue import BatchTurns
from smalti.services.gateway.database.clock import Clock
from smalti.services.gateway.settings import GatewaySettings
from smalti.services.gateway.work.waiting import TenantWork, WaitingChunk, WaitingWork, look

MAX_ROUNDS: Final = 64
"""Maximum number of times that tenants without anything to send are passed over in a pick."""

Windows = Callable[[Mapping[str | None, int]], Mapping[str | None, int]]
"""Returns how many candidates more may be sent, by revision, from how many are in the queues (0 where some wait)."""


class Run(NamedTuple):
    """Chunks of a job that are sent together."""

    job_id: str
    numbers: list[int]
    turns: "Turns"
    before: tuple[str, bool, dict[str, int]]
    """The state of the turns before it was picked."""


@dataclass
class Turns:
    """The turns of tenants in one priority of a revision."""

    turn: int
    """Candidates of a turn, for a tenant of weight 1."""
    tenant: str = ""
    """Whose turn it is, or was last."""
    begun: bool = False
    """Whether its turn is not over yet."""
    left: dict[str, int] = field(default_factory=dict)
    """Candidates that tenants may send, of this turn and turns before."""
    alone: bool = False
    """Whether no other tenant had work when it was read last."""
    more: bool = False
    """Whether there may be more work than was read."""

    @property
    def state(self) -> tuple[str, bool, dict[str, int]]:
        """Whose turn it is, whether it is not over yet, and what is left of all turns."""
        return self.tenant, self.begun, self.left.copy()

    def chunks(self, read: Callable[[str], TenantWork]) -> Iterator[WaitingChunk]:
        """Yields what waits, in the order of turns, as far as one reading of some tenants reaches.

        Args:
            read: returns what tenants have to send, those from the given one on first.
        """
        self.more = False
        for _ in range(MAX_ROUNDS):
            work = read(self.tenant)
            tenants = deque(work.tenants)
            # Who was alone had more than its turn.
            self.begun = self.begun and not (self.alone and len(tenants) > 1)
            self.alone = len(tenants) == 1
            if tenants and tenants[0].name == self.tenant and not self.begun:
                tenants.rotate(-1)  # It had its turn.
                if not work.is_all:
                    tenants.pop()
            if work.is_all:
                names = {each.name for each in tenants}
                self.left = {name: number for name, number in self.left.items() if name in names}
            any_sent = False
            while tenants:
                each = tenants[0]
                if not (self.begun and each.name == self.tenant):
                    self.tenant, self.begun = each.name, True
                    self.left[each.name] = self.left.get(each.name, 0) + self.turn * each.weight
                while each.chunks and each.may_send(each.chunks[0]):
                    if each.chunks[0].size > self.left[each.name]:
                        break
                    chunk = each.chunks.popleft()
                    self.left[each.name] -= chunk.size
                    each.taken += chunk.size
                    any_sent = True
                    yield chunk
                if not each.chunks and each.has_more:
                    self.more = True
                    return  # The next reading goes on with its turn.
                self.begun = False
                if each.chunks and each.may_send(each.chunks[0]):
                    tenants.rotate(-1)
                    if not work.is_all:
                        tenants.pop()
                else:
                    # What is left of its turn is lost, or a tenant could save turns while it has no work.
                    del self.left[each.name]
                    tenants.popleft()
            if work.is_all:
                return
            if any_sent:
                self.more = True
                return


class Picker:
    """Picks chunks; one thread per gateway."""

    def __init__(self, settings: GatewaySettings, clock: Clock) -> None:
        """Starts with nobody's turn."""
        self._settings = settings
        self._clock = clock
        self._turns: dict[tuple[str | None, Priority], Turns] = {}
        self._batch_turns: dict[str | None, BatchTurns] = {}

    def pick(self, session: Session, windows: Windows, *, limit: int) -> tuple[list[Run], bool]:
        """Returns the next chunks, and whether there may be more that fit into the windows.

        Args:
            session: a transaction.
            windows: how much more may be in the queues.
            limit: maximum number of chunks that are read of a tenant.
        """
        waiting = look(session)
        known = set(waiting.revisions)
        self._turns = {key: turns for key, turns in self._turns.items() if key[0] in known}
        self._batch_turns = {key: turns for key, turns in self._batch_turns.items() if key in known}
        rooms = windows(dict.fromkeys(known, 0) | waiting.leased_by_revision()) if known else {}
        runs: list[Run] = []
        more = False
        for revision in waiting.revisions:
            room = rooms.get(revision, 0)
            last: dict[Priority, Run] = {}
            line = self._line(session, waiting, revision, min(room, limit))
            while room > 0 and (found := next(line, None)):
                priority, chunk, before = found
                run = last.get(priority)
                if run is None or run.job_id != chunk.job_id:
                    run = last[priority] = Run(chunk.job_id, [], self._turns[revision, priority], before)
                    runs.append(run)
                run.numbers.append(chunk.number)
                room -= chunk.size
            more |= room > 0 and any(turns.more for (of, _), turns in self._turns.items() if of == revision)
        return runs, more

    def give_back(self, runs: Sequence[Run]) -> None:
        """Takes back turns whose chunks are not sent: all runs of a pick from one on."""
        for run in reversed(runs):
            run.turns.tenant, run.turns.begun, run.turns.left = run.before

    def _line(
        self, session: Session, waiting: WaitingWork, revision: str | None, limit: int
    ) -> Iterator[tuple[Priority, WaitingChunk, tuple[str, bool, dict[str, int]]]]:
        """Yields the chunks of a revision in the order in which they are to be sent, and the turns before each."""
        turn = max(self._settings.turn, self._settings.chunk)
        queues: dict[Priority, Iterator[WaitingChunk]] = {}
        for priority in Priority:
            turns = self._turns.setdefault((revision, priority), Turns(turn))
            reader = waiting.reader(
                session,
                revision=revision,
                priority=priority,
                turn=turn,
                limit=limit,
                batch_slots=self._settings.batch_slots,
                now=self._clock(),
            )
            queues[priority] = turns.chunks(reader)
        batch_turns = self._batch_turns.setdefault(revision, BatchTurns())
        while True:
            first = Priority.BATCH if batch_turns.next_is_batch() else Priority.INTERACTIVE
            for priority in (first, *(other for other in Priority if other is not first)):
                before = self._turns[revision, priority].state
                if (chunk := next(queues[priority], None)) is not None:
                    yield priority, chunk, before
                    break
            else:
                return
