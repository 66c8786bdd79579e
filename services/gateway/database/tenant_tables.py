"""More tables of tenants: their keys, what they have used, their webhooks, and deliveries that are due."""

from sqlalchemy import Boolean, ForeignKey, Index, String, Text, false
from sqlalchemy.orm import Mapped, mapped_column

from smalti.services.gateway.database.tables import MAX_ID_LENGTH, Base

MAX_URL_LENGTH = 2048


class ApiKey(Base):
    """A key of a tenant. The key itself is not kept."""

    __tablename__ = "api_keys"
    __table_args__ = (Index("api_keys_of_tenant", "tenant"),)

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    """The first digits of `sha256`."""
    sha256: Mapped[str] = mapped_column(String(64))
    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    roles: Mapped[str] = mapped_column(String(64))
    """Names of `smalti.services.gateway.identity.Role`, with commas between them."""
    note: Mapped[str] = mapped_column(String(100))
    """What it is for, in the words of whoever made it."""
    created: Mapped[int]
    last_used: Mapped[int | None]
    """The beginning of the day (UTC) of its last use."""
    revoked: Mapped[int | None]


class DailyUsage(Base):
    """What a tenant has asked for in a day. It decides on nothing; the limits are counted in the row of the tenant."""

    __tablename__ = "usage"

    tenant: Mapped[str] = mapped_column(String(MAX_ID_LENGTH), primary_key=True)
    day: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    """The beginning of the day (UTC)."""
    requests: Mapped[int]
    """Jobs that were created."""
    candidates: Mapped[int]
    """Their candidates."""


class Webhook(Base):
    """How a tenant wants to be told what has ended."""

    __tablename__ = "webhooks"

    tenant: Mapped[str] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True)
    url: Mapped[str | None] = mapped_column(String(MAX_URL_LENGTH))
    """Where jobs that name no URL are told; None if they are not."""
    include_prompt: Mapped[bool] = mapped_column(Boolean, default=False, server_default=false())
    secret: Mapped[str] = mapped_column(String(100))
    """What signs. It is kept as it is, since a hash could not sign."""
    former_secret: Mapped[str | None] = mapped_column(String(100))
    """The one before, which signs too until `former_until`."""
    former_until: Mapped[int | None]


class Delivery(Base):
    """A notice that is to be sent to a webhook. The transaction that causes it adds it; it is gone once it is taken."""

    __tablename__ = "deliveries"
    __table_args__ = (
        Index("deliveries_due", "due"),
        Index("deliveries_of_subject", "subject", "version"),
        Index("deliveries_of_tenant", "tenant", "due"),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    """The `webhook-id`, the same at each try."""
    tenant: Mapped[str] = mapped_column(String(MAX_ID_LENGTH))
    subject: Mapped[str] = mapped_column(String(MAX_ID_LENGTH))
    """The id of what has changed, such as a job. Notices of a subject are sent in the order of `version`."""
    version: Mapped[int]
    url: Mapped[str] = mapped_column(String(MAX_URL_LENGTH))
    body: Mapped[str] = mapped_column(Text)
    created: Mapped[int]
    due: Mapped[int]
    """Time of the next try; while it is tried, time at which another gateway may try."""
    tries: Mapped[int] = mapped_column(default=0, server_default="0")
    problem: Mapped[str | None] = mapped_column(Text)
    """Why the last try failed."""
