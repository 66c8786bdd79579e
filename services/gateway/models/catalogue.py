"""The catalogue of models, which gateways share through the database.

Each reads it again every second: who is there, in one query, and the cards that it does not know yet.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from sqlalchemy import delete, exists, select
from sqlalchemy.orm import Session

from smalti.errors import ModelNotFoundError, UnavailableError
from smalti.messages import DEFAULT_VERSION, ROUTES_SINCE, Stage
from smalti.services.gateway.database.clock import Clock, SystemClock, to_microseconds, to_seconds
from smalti.services.gateway.database.connection import Database
from smalti.services.gateway.database.tables import Batch, Job, Revision
from smalti.services.gateway.models.card import ModelCard
from smalti.services.gateway.models.fleet import Fleet, RevisionState, WorkersOfKey, live_workers, state_of
from smalti.services.gateway.models.sharing import Shares
from smalti.services.gateway.models.upserting import upsert

log = logging.getLogger(__name__)

SEEN_SECONDS: Final = 30.0
"""Interval at which a revision that is there is written to the database again."""
FORGET_SECONDS: Final = 30 * 24 * 3600.0
"""Time after which a revision is forgotten that nobody has served, and of which there are no jobs."""
HEARD_SECONDS: Final = 60.0
"""Time for which work goes to the queues of workers that were there."""
HELLO_SECONDS: Final = 15.0
"""Time after the start in which all workers that are there have said hello."""
RECENT_SECONDS: Final = 3600.0
"""Time for which a revision without workers is expected to come back."""
RETRY_SECONDS: Final = 10.0
"""Delay after which a model may have workers again."""
CARD: Final = "card"
"""Name of the digest of the card among the parts of a revision."""

Fits = Callable[[ModelCard], bool]
"""Returns whether a revision can do a job."""


@dataclass(frozen=True)
class _KnownCard:
    card: ModelCard
    digest: str
    seen: float
    is_retired: bool


class Catalogue:
    """The models that can be drawn; thread-safe. Only `refresh` and `forget` ask the database."""

    def __init__(
        self,
        database: Database,
        configured: ModelCard,
        *,
        clock: Clock | None = None,
        write: int = DEFAULT_VERSION,
    ) -> None:
        """Begins with the configured model alone.

        Args:
            database: the database that gateways share.
            configured: the card of the model in this gateway's settings.
            clock: the clock of the database.
            write: the version of the messages that this gateway writes. Without routes, they find the workers of one
                model only, the configured one.
        """
        self._database = database
        self._configured = configured
        self._clock = clock or SystemClock()
        self.write = write
        self._shares = Shares()
        self._lock = threading.Lock()
        self._known: dict[str, _KnownCard] = {}
        self._unusable: dict[str, str] = {}
        """Digests of the cards that this version cannot read, by revision."""
        self._began: float | None = None
        """When it was first looked."""
        self._heard: dict[tuple[Stage, str], float] = {}
        """When live workers were last known, by stage and key."""
        self._seen: float | None = None
        """When the configured revision was last written to the database."""
        self._fleet = self._new_fleet({})

    @property
    def fleet(self) -> Fleet:
        """What could be drawn when it was last looked."""
        return self._fleet

    def card_of(self, job: Job) -> ModelCard:
        """Returns the card of a job's revision; the configured one's if it is not known."""
        return self._fleet.card(revision_of(job))

    def refresh(self) -> Fleet:
        """Reads from the database what can be drawn now, and writes that the configured model is there.

        Raises:
            DatabaseUnavailableError: the database does not answer.
        """
        with self._lock:
            now = self._clock()
            if self._began is None:
                self._began = now
            if self._seen is None or now - self._seen >= SEEN_SECONDS:
                with self._database.write() as session:
                    store_card(session, self._configured, to_microseconds(now))
                self._seen = now
            with self._database.read() as session:
                workers = live_workers(session, to_microseconds(now))
                self._read_cards(session)
            self._heard |= dict.fromkeys(workers, now)
            self._heard = {key: at for key, at in self._heard.items() if now - at < HEARD_SECONDS}
            self._fleet = self._new_fleet(workers)
            self._shares.keep([state.card.revision for state in self._fleet.available])
            return self._fleet

    def may_send(self, state: RevisionState) -> bool:
        """Returns whether work can be sent to a revision now: not before its workers have had the time to say hello."""
        if state.is_live or not state.is_available or self.write < ROUTES_SINCE:
            return state.is_available
        return self._began is not None and self._clock() - self._began >= HELLO_SECONDS

    def choose(self, name: str = "", revision: str = "", *, fits: Fits = lambda card: True) -> RevisionState:
        """Returns the revision for a new job.

        Args:
            name: the model that the request names; empty for the default one.
            revision: the revision that it names; empty for any.
            fits: which revisions can do the job, if there is a choice.

        Raises:
            ModelNotFoundError: no such model, or revision, is known.
            UnavailableError: the model is known, and has no workers now.
        """
        fleet = self._fleet
        named = fleet.get(revision) or fleet.configured
        name = name or named.card.name
        if revision:
            state = fleet.get(revision)
            if state is not None and state.card.name == name and self._may_come_back(state):
                return state
            raise self._not_found(fleet, f"{name} {revision}")
        choices = fleet.choices(name)
        if choices:
            fitting = [state for state in choices if fits(state.card)]
            return self._shares.next(fitting or choices)
        if any(self._was_seen(state, RECENT_SECONDS) for state in fleet.of(name)):
            raise UnavailableError(f"model {name} has no workers now; try again later", RETRY_SECONDS)
        raise self._not_found(fleet, name)

    def find(self, name: str = "", revision: str = "") -> RevisionState:
        """Returns a revision that is known: the asked one, or the one of a model with the most slots.

        Raises:
            ModelNotFoundError: no such model, or revision, is known.
        """
        fleet = self._fleet
        if revision:
            state = fleet.get(revision)
            if state is not None and name in ("", state.card.name):
                return state
        else:
            name = name or fleet.configured.card.name
            if found := fleet.choices(name) or fleet.of(name):
                return max(found, key=lambda state: state.slots)
        raise self._not_found(fleet, f"{name} {revision}".strip())

    def is_default(self, state: RevisionState) -> bool:
        """Returns whether a request that names no model may get a revision."""
        fleet = self._fleet
        choices = fleet.choices(fleet.configured.card.name)
        return state.card.revision in [each.card.revision for each in choices]

    def rebind(self, card: ModelCard, fits: Fits) -> RevisionState | None:
        """Returns the revision of the same model that a job is bound to if its own has no workers; None without one."""
        fleet, own = self._fleet, self._fleet.get(card.revision)
        choices = [
            state
            for state in fleet.choices(card.name)
            if state.card.revision != card.revision and fits(state.card)
        ]
        if own is not None and self._was_seen(own, 3 * SEEN_SECONDS):
            # Workers that say no hello may serve it, for another gateway that is set to it.
            choices = [state for state in choices if state.is_live]
        return self._shares.next(choices) if choices else None

    def forget(self) -> int:
        """Removes revisions that nobody has served for long, and of which there are no jobs; returns how many."""
        old = to_microseconds(self._clock() - FORGET_SECONDS)
        with self._database.write() as session:
            unused = delete(Revision).where(
                Revision.last_seen < old,
                ~exists().where(Job.revision == Revision.revision),
                ~exists().where(Batch.revision == Revision.revision),
            )
            return int(session.execute(unused).rowcount)  # type: ignore[attr-defined]

    def _read_cards(self, session: Session) -> None:
        """Reads the cards that have changed."""
        rows = session.execute(
            select(Revision.revision, Revision.parts, Revision.last_seen, Revision.retired).order_by(
                Revision.first_seen.desc(), Revision.revision
            )
        ).all()
        known: dict[str, _KnownCard] = {}
        unusable: dict[str, str] = {}
        for revision, parts, last_seen, retired in rows:
            digest = str(parts.get(CARD, ""))
            if self._unusable.get(revision) == digest:
                unusable[revision] = digest
                continue
            before = self._known.get(revision)
            card = before.card if before and before.digest == digest else None
            if card is None:
                content = session.scalar(select(Revision.card).where(Revision.revision == revision))
                try:
                    card = ModelCard.parse(content or b"", parts)
                except ValueError as error:
                    log.warning("revision %s is left alone: %s", revision, error)
                    unusable[revision] = digest
                    continue
            known[revision] = _KnownCard(card, digest, to_seconds(last_seen), retired is not None)
        self._known, self._unusable = known, unusable

    def _new_fleet(self, workers: Mapping[tuple[Stage, str], WorkersOfKey]) -> Fleet:
        configured = self._configured
        own = self._known.get(configured.revision)
        # Without routes, work would reach the workers of any model.
        reachable = workers if self.write >= ROUTES_SINCE else {}
        others = [
            state_of(known.card, reachable, seen=known.seen, is_retired=known.is_retired)
            for revision, known in self._known.items()
            if revision != configured.revision
        ]
        is_followed = any(state.is_live and state.card.name == configured.name for state in others)
        first = replace(
            state_of(
                configured, workers, seen=own.seen if own else None, is_retired=bool(own and own.is_retired)
            ),
            is_configured=True,
            # Where the workers of another revision say hello, its own would do so, too.
            is_silent=not is_followed,
        )
        return Fleet(states=(first, *others), workers=workers, heard=frozenset(self._heard))

    def _was_seen(self, state: RevisionState, seconds: float) -> bool:
        return state.seen is not None and self._clock() - state.seen < seconds

    def _may_come_back(self, state: RevisionState) -> bool:
        """Returns whether a job that names a revision may wait for its workers."""
        return state.is_available or (self.write >= ROUTES_SINCE and self._was_seen(state, RECENT_SECONDS))

    def _not_found(self, fleet: Fleet, wanted: str) -> ModelNotFoundError:
        names = ", ".join(fleet.names)
        return ModelNotFoundError(f"{wanted} is not known here; this gateway can draw with {names}", wanted)


def revision_of(job: Job) -> str | None:
    """Returns the revision that a job is bound to, in the rows of older gateways too."""
    if job.revision is not None:
        return job.revision
    return job.parameters.get("revision") if isinstance(job.parameters, dict) else None


def store_card(session: Session, card: ModelCard, now: int) -> None:
    """Stores that a revision is there, with its card.

    Args:
        session: a writing transaction.
        card: the card.
        now: the time in microseconds.
    """
    row = {
        "revision": card.revision,
        "model": card.name,
        "card": card.content,
        "parts": {**{stage.value: key for stage, key in card.parts.items()}, CARD: card.digest},
        "first_seen": now,
        "last_seen": now,
    }
    upsert(session, Revision, [row], ("model", "card", "parts", "last_seen"))
