"""The parts that work on batches, and what their threads do."""

import threading
from collections.abc import Sequence
from typing import Final

from smalti.services.gateway.batches.claims import Claims
from smalti.services.gateway.batches.cleaning import BatchCleaner
from smalti.services.gateway.batches.finishing import Finisher
from smalti.services.gateway.batches.planning import Planner
from smalti.services.gateway.batches.repository import BatchRepository
from smalti.services.gateway.batches.shards import Halving, ShardDispatcher, ShardEvents, ShardProgressBuffer
from smalti.services.gateway.batches.signals import BatchSignals
from smalti.services.gateway.database.presence import Role
from smalti.services.gateway.jobs.context import GatewayContext
from smalti.services.gateway.work.loops import Loop

PLANNERS: Final = 2
"""Batches that a gateway plans at the same time, so that a small one does not wait for a large one."""
SECONDS: Final = 2.0
"""Interval between looks for work that other gateways, or the time, have brought."""
PROGRESS_DELAY_SECONDS: Final = 1.0
"""Time for which progress is collected before it is stored."""
CLEANING_SECONDS: Final = 10.0


class Batches:
    """Batches from their acceptance to their deletion."""

    def __init__(self, context: GatewayContext) -> None:
        """Creates the parts; nothing runs before the loops are started."""
        self._context = context
        self.signals = signals = BatchSignals(changed=context.events.changed, lost=context.events.lost)
        claims = Claims(context, signals)
        halving = Halving(context, signals)
        self.repository = BatchRepository(context, signals)
        self.progress = ShardProgressBuffer(context, signals)
        self.events = ShardEvents(context, signals, halving=halving, progress=self.progress)
        self.dispatcher = ShardDispatcher(context, signals, halving)
        self.planner = Planner(context, signals, claims)
        self.finisher = Finisher(context, signals, claims)
        self.cleaner = BatchCleaner(context, signals)

    def loops(self) -> Sequence[Loop]:
        """Returns the threads; those that plan wait for each other's wake-ups."""
        interval = self._context.settings.sweep
        signals = self.signals
        found = [
            Loop("shards", self.send, seconds=interval, wake=signals.to_send),
            Loop(
                "shard progress",
                self.progress.store,
                seconds=SECONDS,
                wake=self.progress.filled,
                delay=PROGRESS_DELAY_SECONDS,
            ),
            Loop("batch cleaning", self.clean, seconds=CLEANING_SECONDS, wake=signals.to_clean),
        ]
        if self._context.settings.plans:
            found.append(Loop("finishing", self.finish, seconds=SECONDS, wake=signals.to_finish))
            for number in range(PLANNERS):
                wake = signals.to_plan if number == 0 else threading.Event()
                found.append(Loop(f"planning {number}", self.plan, seconds=SECONDS, wake=wake))
        return found

    def send(self) -> None:
        """Sends shards that wait, and those whose leases have expired; raises `UnavailableError`."""
        if not self._context.holds(Role.SHARDS):
            return
        self.dispatcher.send_again()
        self.dispatcher.send_waiting()
        self.dispatcher.tell()

    def plan(self) -> None:
        """Plans all batches that nobody plans; raises `UnavailableError`."""
        while self.planner.plan_next():
            pass

    def finish(self) -> None:
        """Finishes all batches that nobody finishes; raises `UnavailableError`."""
        while self.finisher.finish_next():
            pass

    def clean(self) -> None:
        """Expires batches, and deletes what is due; raises `UnavailableError`."""
        if self._context.holds(Role.SWEEPING):
            self.cleaner.expire()
        if self._context.holds(Role.STORE_TASKS):
            self.cleaner.clean()
