"""Files: what clients bring, and what the gateway makes for them."""

from enum import StrEnum

from sqlalchemy import Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from smalti.services.gateway.database.columns import ReadableEnum
from smalti.services.gateway.database.tables.base import MAX_ID_LENGTH, Base

MAX_PURPOSE_LENGTH = 64


class FileState(StrEnum):
    """State of a file."""

    UPLOADING = "uploading"
    """The content is not there yet."""
    READY = "ready"
    DELETED = "deleted"
    """Nobody sees it any more; its objects are still to be deleted."""


class StoredFile(Base):
    """A file. The row stays until its objects are deleted, so that none is forgotten."""

    __tablename__ = "files"
    __table_args__ = (
        Index("files_of_tenant", "tenant", "created", "id"),
        Index("files_delete", "delete_at"),
    )

    id: Mapped[str] = mapped_column(String(MAX_ID_LENGTH), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(MAX_ID_LENGTH))
    name: Mapped[str] = mapped_column(String(255))
    purpose: Mapped[str] = mapped_column(String(MAX_PURPOSE_LENGTH))
    state: Mapped[FileState] = mapped_column(ReadableEnum(FileState))
    size: Mapped[int] = mapped_column(default=0, server_default="0")
    """Bytes of the content; 0 before it is there."""
    sha256: Mapped[str | None] = mapped_column(String(64))
    key: Mapped[str | None] = mapped_column(Text)
    """Key of the content in the object store; None before it is there."""
    created: Mapped[int]
    retention: Mapped[int]
    """Time for which it is kept, in microseconds."""
    delete_at: Mapped[int]
    """Time at which it is deleted; while it is UPLOADING, time at which the upload is given up."""
    url_until: Mapped[int] = mapped_column(default=0, server_default="0")
    """Time until which anybody with its upload URL may write an object; 0 if it has none."""
