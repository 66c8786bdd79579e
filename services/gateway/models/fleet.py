"""What can be drawn at one point in time: the revisions of models, and the workers that serve them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from smalti.messages import Stage
from smalti.services.gateway.database.tables import Worker
from smalti.services.gateway.models.card import STAGES, ModelCard


class WorkersOfKey(NamedTuple):
    """The live workers of a stage that have the same key."""

    slots: int
    addresses: tuple[str, ...]
    number: int = 0
    """How many they are."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RevisionState:
    """A revision of a model, and who serves it."""

    card: ModelCard
    stages: frozenset[Stage]
    """The stages for which there are live workers."""
    slots: int
    """Candidates that its live generators work on at a time."""
    generators: int = 0
    """Number of its live generators."""
    seen: float | None = None
    """When it was last known to be there, in seconds since 1970."""
    is_configured: bool = False
    """Whether it is the model of this gateway's settings, whose workers need not say hello."""
    is_retired: bool = False
    """Whether new jobs get it only if they name it, or if nothing else can draw them."""
    is_silent: bool = False
    """Whether jobs are sent to it although its workers have not said hello."""

    @property
    def is_live(self) -> bool:
        """Whether there are live workers for every stage that a job needs."""
        return self.stages.issuperset(STAGES)

    @property
    def is_available(self) -> bool:
        """Whether jobs are sent to it."""
        return self.is_live or self.is_silent

    @property
    def refines(self) -> bool:
        """Whether a live worker refines its pictures."""
        return Stage.REFINE in self.stages


@dataclass(frozen=True, kw_only=True, eq=False)
class Fleet:
    """All revisions that are known, and their workers. The configured one comes first, then the newest."""

    states: Sequence[RevisionState]
    workers: Mapping[tuple[Stage, str], WorkersOfKey] = field(default_factory=dict)
    """The live workers by stage and key."""
    heard: Collection[tuple[Stage, str]] = ()
    """Stages and keys whose workers have said hello lately; they may be gone for a moment."""

    @cached_property
    def by_revision(self) -> Mapping[str, RevisionState]:
        """The states by revision."""
        return {state.card.revision: state for state in self.states}

    @property
    def configured(self) -> RevisionState:
        """The revision of this gateway's settings."""
        return self.states[0]

    @property
    def available(self) -> list[RevisionState]:
        """What can be drawn now."""
        return [state for state in self.states if state.is_available]

    @property
    def names(self) -> list[str]:
        """Names of the models that can be drawn now, without repetitions."""
        return list(dict.fromkeys(state.card.name for state in self.available))

    @cached_property
    def side(self) -> int | None:
        """Tiles along each side of a picture, if that is the same for all revisions."""
        sides = {state.card.side for state in self.states}
        return sides.pop() if len(sides) == 1 else None

    def get(self, revision: str | None) -> RevisionState | None:
        """Returns the state of a revision; None if it is not known."""
        return self.by_revision.get(revision or "")

    def card(self, revision: str | None) -> ModelCard:
        """Returns the card of a revision; that of the configured one if it is not known, as in old databases."""
        state = self.get(revision)
        return (state or self.configured).card

    def of(self, name: str) -> list[RevisionState]:
        """Returns the revisions of a model."""
        return [state for state in self.states if state.card.name == name]

    def choices(self, name: str) -> list[RevisionState]:
        """Returns the revisions of a model that a new job can be bound to.

        Those that are live, retired ones only if there is no other. Without any the configured one, whose workers may
        be silent.
        """
        known = self.of(name)
        for candidates in (
            [state for state in known if state.is_live and not state.is_retired],
            [state for state in known if state.is_live],
            [state for state in known if state.is_silent],
        ):
            if candidates:
                return candidates
        return []

    def routes(self, revision: str | None) -> dict[Stage, str]:
        """Returns the keys of the queues for the work of a revision: for the stages whose workers say hello."""
        state = self.get(revision)
        return {
            stage: key
            for stage, key in (state.card.parts.items() if state else ())
            if (stage, key) in self.workers or (stage, key) in self.heard
        }

    @cached_property
    def addresses(self) -> Collection[str]:
        """The addresses of all live workers."""
        return {address for each in self.workers.values() for address in each.addresses}

    def decoders(self, card: ModelCard) -> Sequence[str]:
        """Returns the addresses of live decoders for the tokens of a revision."""
        found = self.workers.get((Stage.DECODE, card.parts[Stage.DECODE]))
        return found.addresses if found else ()


def state_of(
    card: ModelCard,
    workers: Mapping[tuple[Stage, str], WorkersOfKey],
    *,
    seen: float | None = None,
    is_retired: bool = False,
) -> RevisionState:
    """Returns the state of a revision, given the live workers."""
    served = {stage: workers[stage, key] for stage, key in card.parts.items() if (stage, key) in workers}
    return RevisionState(
        card=card,
        stages=frozenset(served),
        slots=served[Stage.GENERATE].slots if Stage.GENERATE in served else 0,
        generators=served[Stage.GENERATE].number if Stage.GENERATE in served else 0,
        seen=seen,
        is_retired=is_retired,
    )


def live_workers(session: Session, now: int) -> dict[tuple[Stage, str], WorkersOfKey]:
    """Reads which workers are there, by stage and key.

    Args:
        session: a transaction.
        now: the time in microseconds.
    """
    live = select(Worker.stage, Worker.key, Worker.slots, Worker.address).where(
        Worker.silent_at > now, Worker.leaving.is_(False)
    )
    found: dict[tuple[Stage, str], WorkersOfKey] = {}
    for name, key, slots, address in session.execute(live.order_by(Worker.id)):
        if name not in list(Stage):
            continue
        before = found.get((Stage(name), key), WorkersOfKey(0, ()))
        found[Stage(name), key] = WorkersOfKey(
            before.slots + slots,
            (*before.addresses, *([address] if address else [])),
            before.number + 1,
        )
    return found
