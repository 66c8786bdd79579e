"""Rows of tokens that are told to the other gateways, so that a watcher of any gateway sees all of them.

The broker gives each event to one gateway. The database has what becomes of the job; rows are in no database, since
they are worth something for seconds only. So they may be lost, and then a preview lacks some.
"""

import logging
from collections.abc import Callable
from typing import Final

from smalti.errors import MessageError
from smalti.messages import QUEUE_PREFIX, Progress, parse
from smalti.queue import Broadcast, BrokerSettings
from smalti.services.gateway.database.presence import Presence

log = logging.getLogger(__name__)

NAME: Final = f"{QUEUE_PREFIX}rows"


def _ignore(progress: Progress) -> None:
    pass


class RowFeed:
    """Tells and hears rows; thread-safe."""

    def __init__(self, broker: BrokerSettings, presence: Presence) -> None:
        """Connects to nothing before `start`.

        Args:
            broker: the broker.
            presence: tells whether there are other gateways.
        """
        self.hear: Callable[[Progress], None] = _ignore
        """Called with the rows that other gateways tell, from one thread."""
        self._presence = presence
        self._broadcast = Broadcast(NAME, "gateway", self._heard, broker)

    @property
    def is_ready(self) -> bool:
        """Whether the rows of others are received."""
        return self._broadcast.listening.is_set()

    def tell(self, progress: Progress) -> None:
        """Tells the other gateways of rows, if there are any; never waits."""
        if progress.tokens and self._presence.others:
            self._broadcast.tell(progress.to_json())

    def start(self) -> None:
        """Starts the threads."""
        self._broadcast.start()

    def stop(self) -> None:
        """Ends the threads."""
        self._broadcast.stop()

    def _heard(self, text: str) -> None:
        try:
            message = parse(text)
        except MessageError as error:
            log.warning("rows of another gateway are dropped: %s", error)
            return
        if isinstance(message, Progress):
            self.hear(message)
