"""Counts how often workers crashed over a message while they handled nothing else.

A broker marks what it delivers again, but does not say why: everything that a crashed worker held comes back with the
same mark, and so does what a lost connection held. The mark therefore only makes a message suspect; a crash of a worker
that handled it alone convicts it. The count is kept in the object store, since it must outlive the worker.
"""

import hashlib

from pydantic import Field, ValidationError

from smalti.errors import DamagedObjectError, MissingObjectError
from smalti.messages import Message
from smalti.storage import ObjectStore
from smalti.validation import Strict


class PoisonRecord(Strict):
    """The record of one piece of work."""

    crashes: int = Field(ge=0, alias="deaths")
    """Workers that began the work alone and did not finish it. The alias is the name in the stored file."""


class PoisonRecords:
    """The records in an object store. Every method may raise `StoreUnavailableError`."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def crashes(self, message: Message) -> int:
        """Returns how many workers have crashed over the work alone; 0 if the record is missing or unreadable."""
        try:
            return PoisonRecord.model_validate_json(self._store.get(self._key(message))).crashes
        except (MissingObjectError, DamagedObjectError, ValidationError):
            return 0

    def begin(self, message: Message, crashes: int) -> None:
        """Records the number of crashes including one of this worker, which `end` takes back."""
        record = PoisonRecord(deaths=crashes)
        self._store.put(self._key(message), record.model_dump_json(by_alias=True).encode())

    def end(self, message: Message) -> None:
        """Deletes the record: the work ended without a crash."""
        self._store.delete(self._key(message))

    def _key(self, message: Message) -> str:
        work = hashlib.sha256("\0".join(message.work_key).encode()).hexdigest()[:16]
        return message.keys.poison_record(f"{message.stage_queue}-{work}")
