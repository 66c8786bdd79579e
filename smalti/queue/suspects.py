"""Remembers the work over which a worker has died while it did nothing else.

A broker marks what it delivers again, but not why: a worker that dies leaves behind all that it had in hand, and what
comes back of a connection that ended, or of a queue that is no longer listened to, has the same mark. So the mark makes
work suspect and no more; what convicts it is a worker that died over it alone. The object store keeps the count, since
nothing of the worker is left then.
"""

import hashlib
from typing import Annotated

from pydantic import Field, ValidationError

from smalti.errors import DamagedObjectError, MissingObjectError
from smalti.messages import Message
from smalti.storage import ObjectStore
from smalti.validation import Strict


class Record(Strict):
    """What is known of suspect work."""

    deaths: Annotated[int, Field(ge=0)]
    """Workers that have begun it alone, and not ended it."""


class Suspects:
    """The records of one store."""

    def __init__(self, store: ObjectStore) -> None:
        """Takes the store; it may raise `StoreUnavailableError` in every method."""
        self._store = store

    def deaths(self, message: Message) -> int:
        """Returns how many workers have died over the work alone."""
        try:
            return Record.model_validate_json(self._store.get(self._key(message))).deaths
        except (MissingObjectError, DamagedObjectError, ValidationError):
            return 0

    def begin(self, message: Message, deaths: int) -> None:
        """Notes how many there will have been if this worker dies as well."""
        self._store.put(self._key(message), Record(deaths=deaths).model_dump_json().encode())

    def end(self, message: Message) -> None:
        """Forgets the work: it was ended, well or not."""
        self._store.delete(self._key(message))

    def _key(self, message: Message) -> str:
        work = hashlib.sha256("\0".join(message.work).encode()).hexdigest()[:16]
        return message.keys.suspect(f"{message.stage_queue}-{work}")
