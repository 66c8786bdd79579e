"""Shares new jobs out among the revisions of a model, by the slots of their generators."""

import threading
from collections.abc import Sequence

from smalti.services.gateway.models.fleet import RevisionState


class Shares:
    """Smooth weighted round robin: each revision gets its share of any few jobs in a row; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._credits: dict[str, int] = {}

    def next(self, states: Sequence[RevisionState]) -> RevisionState:
        """Returns the revision whose turn it is; there must be at least one."""
        if len(states) == 1:
            return states[0]
        weights = {state.card.revision: max(state.slots, 1) for state in states}
        with self._lock:
            # Who is not asked for any more loses its credit.
            credits = {
                revision: self._credits.get(revision, 0) + weight for revision, weight in weights.items()
            }
            chosen = max(states, key=lambda state: credits[state.card.revision])
            credits[chosen.card.revision] -= sum(weights.values())
            self._credits = {**self._credits, **credits}
            return chosen

    def keep(self, revisions: Sequence[str]) -> None:
        """Forgets the credits of all other revisions."""
        with self._lock:
            self._credits = {each: credit for each, credit in self._credits.items() if each in revisions}
