"""The repository of files: reserves, finishes, reads, lists and deletes them. Contents are in the object store."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Exists, Select, exists, func, select
from sqlalchemy.orm import Session

from smalti.errors import QuotaExceededError, StoredFileNotFoundError, WrongStateError
from smalti.services.gateway.database.clock import to_microseconds
from smalti.services.gateway.database.tables import (
    IS_OPEN_BATCH,
    Batch,
    FileState,
    PageCursor,
    StoredFile,
    Tenant,
    page_of,
)
from smalti.services.gateway.jobs.context import GatewayContext
from smalti.storage import ObjectRef

ABANDONED_SECONDS: Final = 24 * 3600.0
"""Time after which an upload that was not finished is given up."""
LATE_SECONDS: Final = 600.0
"""Time after which the objects of an upload that has failed are deleted."""
RETRY_SECONDS: Final = 60.0
"""When a tenant whose limit is used up may try again."""
_COUNTED: Final = (FileState.UPLOADING, FileState.READY)


@dataclass(frozen=True, kw_only=True)
class NewFile:
    """What is known of a file before its content."""

    tenant: str
    name: str
    purpose: str
    retention: float
    """Seconds for which it is kept."""
    id: str = ""
    """Its id; empty for a new one."""


@dataclass(frozen=True, kw_only=True)
class FileFilter:
    """A filter for the files to list; empty fields match every file."""

    name: str = ""
    purpose: str = ""
    tenant: str | None = None
    """Whose files; None for those of all tenants."""


class FileRepository:
    """The files in the database; thread-safe, and every call blocks.

    Files of other tenants are not found; the tenant None finds those of all.
    """

    def __init__(self, context: GatewayContext) -> None:
        self._database = context.database
        self._settings = context.settings
        self._clock = context.clock

    def reserve(self, new: NewFile, *, url_seconds: float = 0.0) -> tuple[StoredFile, int]:
        """Stores a file without content, before anything of it is in the store.

        Args:
            new: the file.
            url_seconds: time for which its upload URL is valid; 0 if it has none.

        Returns:
            The file, and the bytes that it may have.

        Raises:
            QuotaExceededError: the tenant has no room.
        """
        row = self._new(new, url_seconds)
        with self._database.write() as session:
            room = self._room(session, new.tenant, files=1)
            session.add(row)
        return row, room

    def add(self, new: NewFile) -> StoredFile:
        """Stores a file without content that needs no room of its own now; one that is there stays."""
        row = self._new(new, 0.0)
        with self._database.write() as session:
            found = session.get(StoredFile, row.id)
            if found is None:
                session.add(row)
        return found or row

    def finish(
        self, file_id: str, ref: ObjectRef, size: int, *, parts: Sequence[str] = (), checked: bool = True
    ) -> StoredFile:
        """Makes a file READY whose content is in the store, and deletes its parts.

        A file that is READY already stays as it is.

        Args:
            file_id: the file.
            ref: its content.
            size: bytes of the content.
            parts: the files that it is made of, which are deleted.
            checked: whether the tenant must have room for it.

        Raises:
            StoredFileNotFoundError: it, or a part, was deleted meanwhile.
            WrongStateError: a batch reads a part.
            QuotaExceededError: the tenant has no room for it.
        """
        with self._database.write() as session:
            row = _found(_locked(session, file_id), file_id, None)
            if row.state is FileState.READY:
                return row
            now = to_microseconds(self._clock())
            for part in parts:
                _delete(session, _found(_locked(session, part), part, row.tenant), now)
            session.flush()  # The parts do not count any more.
            if checked:
                self._room(session, row.tenant, size=size)
            row.state = FileState.READY
            row.key, row.sha256, row.size = ref.key, ref.sha256, size
            row.delete_at = row.created + row.retention
        return row

    def give_up(self, file_id: str) -> None:
        """Deletes a file whose upload has failed."""
        with self._database.write() as session:
            row = _locked(session, file_id)
            if row is not None and row.state is FileState.UPLOADING:
                row.state = FileState.DELETED
                # A thread may still be writing the object.
                row.delete_at = to_microseconds(self._clock() + LATE_SECONDS)

    def check_room(self, tenant: str, size: int) -> None:
        """Raises `QuotaExceededError` if a tenant has no room for so many bytes more."""
        with self._database.read() as session:
            self._check(session, tenant, size=size, files=0)

    def get(self, file_id: str, *, tenant: str | None = None) -> StoredFile:
        """Returns a file; raises `StoredFileNotFoundError`."""
        with self._database.read() as session:
            return _found(session.get(StoredFile, file_id), file_id, tenant)

    def get_ready(self, file_id: str, *, tenant: str | None = None) -> StoredFile:
        """Returns a file whose content is there.

        Raises:
            StoredFileNotFoundError: there is no such file.
            WrongStateError: its content is not there yet.
        """
        row = self.get(file_id, tenant=tenant)
        if row.state is not FileState.READY:
            raise WrongStateError(f"file {row.id} has no content yet; finish its upload")
        return row

    def page(
        self, matching: FileFilter, *, after: PageCursor | None, limit: int, oldest_first: bool = False
    ) -> Sequence[StoredFile]:
        """Returns a page of files, the newest first unless `oldest_first` is set.

        Args:
            matching: which files to list.
            after: the last file of the previous page; None for the first page.
            limit: maximum number of files.
            oldest_first: whether the oldest come first.
        """
        query = select(StoredFile).where(StoredFile.state != FileState.DELETED)
        query = page_of(query, StoredFile, after=after, limit=limit, oldest_first=oldest_first)
        if matching.tenant is not None:
            query = query.where(StoredFile.tenant == matching.tenant)
        if matching.purpose:
            query = query.where(StoredFile.purpose == matching.purpose)
        if matching.name:
            query = query.where(StoredFile.name == matching.name)
        with self._database.read() as session:
            return session.scalars(query).all()

    def delete(self, file_id: str, *, tenant: str | None = None) -> StoredFile:
        """Deletes a file; its content is deleted soon after.

        Raises:
            StoredFileNotFoundError: there is no such file.
            WrongStateError: a batch reads it.
        """
        with self._database.write() as session:
            row = _found(_locked(session, file_id), file_id, tenant)
            _delete(session, row, to_microseconds(self._clock()))
        return row

    def due(self, limit: int) -> Sequence[StoredFile]:
        """Returns files whose objects are to be deleted now; those of them that callers still see are hidden first."""
        now = to_microseconds(self._clock())
        query = (
            select(StoredFile)
            .where(StoredFile.delete_at <= now, ~_is_read(StoredFile.id))
            .order_by(StoredFile.delete_at)
            .limit(limit)
        )
        with self._database.read() as session:
            if not session.scalars(query.limit(1)).all():
                return []
        gone = []
        with self._database.write() as session:
            for row in session.scalars(query.with_for_update(skip_locked=True)):
                row.state = FileState.DELETED
                gone.append(row)
        return gone

    def remove(self, row: StoredFile) -> None:
        """Removes a file whose objects are deleted; one to which an upload URL still leads is removed later."""
        now = to_microseconds(self._clock())
        with self._database.write() as session:
            found = _locked(session, row.id)
            if found is None:
                return
            if found.url_until >= now:
                found.delete_at = found.url_until + to_microseconds(RETRY_SECONDS)
            else:
                session.delete(found)

    def _new(self, new: NewFile, url_seconds: float) -> StoredFile:
        now = self._clock()
        return StoredFile(
            id=new.id or str(uuid.uuid4()),
            tenant=new.tenant,
            name=new.name,
            purpose=new.purpose,
            state=FileState.UPLOADING,
            size=0,
            created=to_microseconds(now),
            retention=to_microseconds(new.retention),
            delete_at=to_microseconds(now + ABANDONED_SECONDS),
            url_until=to_microseconds(now + url_seconds) if url_seconds else 0,
        )

    def _room(self, session: Session, tenant: str, *, size: int = 0, files: int = 0) -> int:
        """Returns the bytes of which a tenant may bring as many; others that ask at the same time wait."""
        session.scalars(select(Tenant.id).where(Tenant.id == tenant).with_for_update()).one_or_none()
        return self._check(session, tenant, size=size, files=files)

    def _check(self, session: Session, tenant: str, *, size: int, files: int) -> int:
        number, stored = session.execute(_usage(tenant)).one()
        settings = self._settings
        if number + files > settings.stored_files:
            raise _used_up(tenant, "stored_files", f"{number} files", settings.stored_files)
        left = max(0, settings.stored_file_bytes - int(stored))
        if left < max(size, files):
            has = f"{int(stored)} bytes of files"
            raise _used_up(tenant, "stored_file_bytes", has, settings.stored_file_bytes, left)
        return min(left, settings.file_bytes)


def _usage(tenant: str) -> Select[int, int]:
    return select(func.count(), func.coalesce(func.sum(StoredFile.size), 0)).where(
        StoredFile.tenant == tenant, StoredFile.state.in_(_COUNTED)
    )


def _used_up(tenant: str, quota: str, has: str, limit: int, left: int = 0) -> QuotaExceededError:
    problem = f"tenant {tenant} has {has}, and may have {limit}; delete some"
    return QuotaExceededError(problem, RETRY_SECONDS, quota=quota, limit=limit, left=left)


def _locked(session: Session, file_id: str) -> StoredFile | None:
    return session.scalars(select(StoredFile).where(StoredFile.id == file_id).with_for_update()).one_or_none()


def _is_read(file_id: Any) -> Exists:
    """Returns the condition that a batch that has not ended reads a file."""
    return exists().where(IS_OPEN_BATCH, Batch.input_file == file_id)


def _delete(session: Session, row: StoredFile, now: int) -> None:
    """Deletes a locked file; raises `WrongStateError` if a batch reads it."""
    if session.scalar(select(_is_read(row.id))):
        raise WrongStateError(f"a batch reads file {row.id}; delete it when the batch has ended")
    row.state, row.delete_at = FileState.DELETED, now


def _found(row: StoredFile | None, file_id: str, tenant: str | None) -> StoredFile:
    if row is None or row.state is FileState.DELETED or tenant not in (None, row.tenant):
        raise StoredFileNotFoundError(file_id)
    return row
