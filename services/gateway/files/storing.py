"""Files of the gateway's own, and the deletion of files whose time is over."""

import logging
from pathlib import Path
from typing import Final

from smalti.services.gateway.database.tables import FileState
from smalti.services.gateway.files.contents import FileContents, FileKeys
from smalti.services.gateway.files.repository import FileRepository, NewFile
from smalti.services.gateway.jobs.context import GatewayContext
from smalti.storage import digest_of_file

log = logging.getLogger(__name__)

FILES_AT_A_TIME: Final = 100
"""Files that are deleted at a time."""


def register_file(context: GatewayContext, new: NewFile, path: Path) -> str:
    """Makes a file on this machine a file of a tenant, and returns its id; it counts against no limit.

    With `NewFile.id`, the call may be repeated: a file that is READY already stays as it is.

    Raises:
        StoreUnavailableError: the store does not answer.
        DatabaseUnavailableError: the database does not answer.
    """
    repository = FileRepository(context)
    row = repository.add(new)
    if row.state is not FileState.READY:
        ref = context.store.put_file(FileKeys(row.id).content(digest_of_file(path)), path)
        repository.finish(row.id, ref, path.stat().st_size, checked=False)
    return row.id


def remove_due(repository: FileRepository, contents: FileContents) -> int:
    """Deletes files that are due, with their objects; returns how many.

    Raises:
        StoreUnavailableError: the store does not answer; the rest is deleted later.
    """
    rows = repository.due(FILES_AT_A_TIME)
    for row in rows:
        contents.delete(row.id)
        repository.remove(row)
    if rows:
        log.info("deleted %d files", len(rows))
    return len(rows)
