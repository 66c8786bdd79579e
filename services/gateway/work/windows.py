"""How many candidates may be in the queues at a time, for each revision of a model."""

from collections.abc import Mapping

from smalti.services.gateway.jobs.context import GatewayContext
from smalti.services.gateway.models import RevisionState

PER_SLOT = 2
"""Candidates in the queues for each slot of a generator: one that it works on, and the next one."""


class Windows:
    """The windows of revisions that can be drawn now; all others have none, so that they fill nobody's."""

    def __init__(self, context: GatewayContext) -> None:
        self._catalogue = context.catalogue
        self._settings = context.settings
        self._is_bounded = "window" in context.settings.model_fields_set

    def __call__(self, leased: Mapping[str | None, int]) -> dict[str | None, int]:
        """Returns the room that is left, in candidates, by revision; those without room are left out.

        None stands for chunks without a revision, which gateways of older versions have stored. They share the window
        of the configured model.

        Args:
            leased: candidates that are in the queues, by revision; also of revisions for which some only wait. They
                share a bound for all.
        """
        fleet = self._catalogue.fleet
        rooms: dict[str | None, int] = {}
        for state in fleet.available:
            if not self._catalogue.may_send(state):
                continue
            revision = state.card.revision
            rooms[revision] = self._size(state) - leased.get(revision, 0)
            if state.is_configured:
                rooms[revision] -= leased.get(None, 0)
        without = rooms.get(fleet.configured.card.revision, 0)
        rooms = {revision: room for revision, room in rooms.items() if room > 0 and revision in leased}
        if self._is_bounded:
            # What waits in the queues of a revision without workers is nobody's work now.
            served = {None, *(state.card.revision for state in fleet.available)}
            busy = sum(count for revision, count in leased.items() if revision in served)
            left, wanted = self._settings.window - busy, sum(rooms.values())
            if wanted > left:
                # Rounded up, so that a small bound stops nobody.
                rooms = {revision: -(-room * left // wanted) for revision, room in rooms.items()}
                without = min(without, left)
        return {revision: room for revision, room in (*rooms.items(), (None, without)) if room > 0}

    def _size(self, state: RevisionState) -> int:
        return PER_SLOT * state.slots if state.slots else self._settings.window
