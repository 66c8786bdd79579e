"""What workers say of themselves: collected, and stored together.

Losing a hello does no harm, since the next one comes soon.
"""

import base64
import binascii
import logging
import threading
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import delete

from smalti.messages import Hello
from smalti.services.gateway.database.clock import Clock, to_microseconds
from smalti.services.gateway.database.connection import Database
from smalti.services.gateway.database.tables import Worker
from smalti.services.gateway.models.card import ModelCard
from smalti.services.gateway.models.catalogue import SEEN_SECONDS, store_card
from smalti.services.gateway.models.upserting import upsert

log = logging.getLogger(__name__)

INTERVALS: Final = 3
"""Intervals without a hello after which a worker counts as gone, and after which a hello is too old."""
BATCH_SIZE: Final = 500
"""Rows of one statement."""
REMEMBERED_SECONDS: Final = 3 * 3600.0
"""Time for which a worker is remembered that says nothing; hellos are at most an hour apart."""


@dataclass(frozen=True)
class _Old:
    """A hello that seems too old."""

    sent: float
    arrived: float


class HelloBuffer:
    """Collects hellos, and stores them when `store` is called; thread-safe."""

    def __init__(self, database: Database, clock: Clock, elapsed: Clock) -> None:
        """Creates the buffer.

        Args:
            database: the database that gateways share.
            clock: its clock.
            elapsed: returns seconds that only grow.
        """
        self._database = database
        self._clock = clock
        self._elapsed = elapsed
        self._lock = threading.Lock()
        self._hellos: dict[str, Hello] = {}
        self._old: dict[str, _Old] = {}
        """The last hello that seemed too old, by worker."""
        self._cards: dict[str, tuple[str, float]] = {}
        """What was lately stored of a revision: the card as it was sent, and when."""
        self._known: dict[str, float] = {}
        """Workers that this gateway has heard of, and when it heard them last."""
        self.filled = threading.Event()
        """Set when there is something to store that is news."""

    def add(self, hello: Hello) -> None:
        """Takes a hello; one that is too old is dropped, since its worker may be gone."""
        with self._lock:
            if self._is_too_old(hello):
                return
            before = self._hellos.get(hello.worker)
            if before is not None and before.sent >= hello.sent:
                return
            self._hellos[hello.worker] = hello
            if hello.worker not in self._known or hello.leaving:
                self.filled.set()

    def store(self) -> int:
        """Stores what was collected; returns how many hellos that were.

        Raises:
            DatabaseUnavailableError: the database does not answer; later hellos say the same again.
        """
        elapsed = self._elapsed()
        with self._lock:
            hellos, self._hellos = list(self._hellos.values()), {}
            self.filled.clear()
            self._known |= {hello.worker: elapsed for hello in hellos}
            for hello in hellos:
                if hello.leaving:
                    del self._known[hello.worker]
            long_ago = elapsed - REMEMBERED_SECONDS
            self._known = {worker: heard for worker, heard in self._known.items() if heard > long_ago}
            self._old = {worker: old for worker, old in self._old.items() if old.arrived > long_ago}
        if not hellos:
            return 0
        now = self._clock()
        self._cards = {
            revision: (card, at) for revision, (card, at) in self._cards.items() if now - at < SEEN_SECONDS
        }
        cards = self._new_cards(hellos)
        with self._database.write() as session:
            # Sorted, so that gateways lock the rows in the same order.
            for _, card in sorted(cards.values(), key=lambda found: found[1].revision):
                store_card(session, card, to_microseconds(now))
            rows = [_row(hello, now) for hello in sorted(hellos, key=lambda hello: hello.worker)]
            for start in range(0, len(rows), BATCH_SIZE):
                batch = rows[start : start + BATCH_SIZE]
                upsert(session, Worker, batch, [name for name in batch[0] if name != "id"], newer="sent_at")
        # Only now, or cards that were not stored would be missing until they are due again.
        self._cards |= {revision: (sent, now) for revision, (sent, _) in cards.items()}
        return len(hellos)

    def forget(self) -> int:
        """Removes workers that have been silent for too long, or have left; returns how many."""
        now = to_microseconds(self._clock())
        with self._database.write() as session:
            gone = session.scalars(delete(Worker).where(Worker.silent_at <= now).returning(Worker.id)).all()
        with self._lock:
            for worker in gone:
                self._known.pop(worker, None)
                self._old.pop(worker, None)
        return len(gone)

    def _is_too_old(self, hello: Hello) -> bool:
        """Returns whether a hello has waited in the queue for too long.

        Clocks may differ. So a worker whose hellos seem old, and come as far apart as they were sent, is there.
        """
        now, limit = self._clock(), INTERVALS * hello.interval
        if hello.leaving or now - hello.sent <= limit:
            self._old.pop(hello.worker, None)
            return False
        before, arrived = self._old.get(hello.worker), self._elapsed()
        self._old[hello.worker] = _Old(hello.sent, arrived)
        if before is None:
            log.info("dropped a hello of %s: it is %.0f s old", hello.worker, now - hello.sent)
            return True
        return not 0 < hello.sent - before.sent <= 2 * (arrived - before.arrived)

    def _new_cards(self, hellos: list[Hello]) -> dict[str, tuple[str, ModelCard]]:
        """Returns the cards among hellos that were not stored lately, as they were sent and parsed, by revision."""
        found: dict[str, tuple[str, ModelCard]] = {}
        for hello in hellos:
            if hello.card is None or hello.leaving:
                continue
            if hello.card == self._cards.get(hello.revision, ("", 0.0))[0]:
                continue
            try:
                content = base64.b64decode(hello.card, validate=True)
                card = ModelCard.parse(content, {stage.value: key for stage, key in hello.parts.items()})
            except (binascii.Error, ValueError) as error:
                log.warning("the hello of %s is left alone: %s", hello.worker, error)
                continue
            if (card.name, card.revision) != (hello.model, hello.revision):
                log.warning("the hello of %s is left alone: its card is of another model", hello.worker)
                continue
            found[hello.revision] = hello.card, card
        return found


def _row(hello: Hello, now: float) -> dict[str, Any]:
    return {
        "id": hello.worker,
        "stage": hello.stage.value,
        "key": hello.key,
        "model": hello.model,
        "revision": hello.revision,
        "slots": hello.slots,
        "device": hello.device,
        "version": hello.code[:64],
        "reads": hello.reads,
        "address": hello.address,
        "sent_at": to_microseconds(hello.sent),
        "seen_at": to_microseconds(now),
        "silent_at": to_microseconds(now + INTERVALS * hello.interval),
        "leaving": hello.leaving,
    }
