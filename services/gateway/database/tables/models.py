"""Models: their revisions, and the workers that have said hello."""

from typing import Any

from sqlalchemy import (
    Boolean,
    Index,
    LargeBinary,
    String,
    false,
)
from sqlalchemy.orm import Mapped, mapped_column

from smalti.services.gateway.database.tables.base import MAX_ID_LENGTH, MAX_REVISION_LENGTH, Base


class Revision(Base):
    """A revision of a model whose workers have said hello."""

    __tablename__ = "revisions"

    revision: Mapped[str] = mapped_column(String(MAX_REVISION_LENGTH), primary_key=True)
    model: Mapped[str] = mapped_column(String(MAX_REVISION_LENGTH))
    """Name of the model."""
    card: Mapped[bytes] = mapped_column(LargeBinary)
    """Serialized `smalti.v1.Model` with the vocabulary, without limits."""
    parts: Mapped[dict[str, Any]]
    """Keys of the queues of its stages, by the name of the stage."""
    first_seen: Mapped[int]
    last_seen: Mapped[int]
    """Time of the last hello that brought the card."""
    retired: Mapped[int | None]
    """Time since which new jobs are bound to it only if they name it."""


class Worker(Base):
    """A worker that has said hello, and is expected to say so again."""

    __tablename__ = "workers"
    __table_args__ = (Index("workers_silent", "silent_at"),)

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    stage: Mapped[str] = mapped_column(String(16))
    """Name of a `smalti.messages.Stage`."""
    key: Mapped[str] = mapped_column(String(MAX_ID_LENGTH))
    """Key of its queues."""
    model: Mapped[str] = mapped_column(String(MAX_REVISION_LENGTH))
    revision: Mapped[str] = mapped_column(String(MAX_REVISION_LENGTH))
    """Of the model that it has loaded; another one's work reaches it if the key is the same."""
    slots: Mapped[int] = mapped_column(default=0, server_default="0")
    """Candidates that it works on at a time."""
    device: Mapped[str] = mapped_column(String(200), default="", server_default="")
    version: Mapped[str] = mapped_column(String(64), default="", server_default="")
    """Version of the package."""
    reads: Mapped[int] = mapped_column(default=0, server_default="0")
    """The newest version of messages that it reads."""
    address: Mapped[str] = mapped_column(String(255), default="", server_default="")
    """Where its calls are answered, `HOST:PORT`."""
    sent_at: Mapped[int]
    """Time of its last hello by its own clock, which tells a late hello from a new one."""
    seen_at: Mapped[int]
    """Time of its last hello by the clock of the database."""
    silent_at: Mapped[int]
    """Time from which it counts as gone unless it says hello again."""
    leaving: Mapped[bool] = mapped_column(Boolean, default=False, server_default=false())
    """Whether it has said that it stops; the row stays until `silent_at`, so that a late hello changes nothing."""
