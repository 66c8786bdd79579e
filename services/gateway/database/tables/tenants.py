"""Tenants: what they have and may have, their keys, their webhooks, and deliveries that are due."""

from typing import Final

from sqlalchemy import (
    Boolean,
    ForeignKey,
    Index,
    String,
    Text,
    false,
)
from sqlalchemy.orm import Mapped, mapped_column

from smalti.services.gateway.database.tables.base import MAX_ID_LENGTH, Base

COUNTERS: Final = ("open_jobs", "open_batch_jobs", "stored_jobs", "stored_bytes")
"""The columns of a tenant that follow its jobs."""
MAX_URL_LENGTH = 2048


class Tenant(Base):
    """A tenant: whose jobs they are, what it may have, and how much it has.

    The counters are changed in the transaction that changes the jobs; see `smalti.services.gateway.jobs.tenants`.
    """

    __tablename__ = "tenants"

    id: Mapped[str] = mapped_column(String(MAX_ID_LENGTH), primary_key=True)
    weight: Mapped[int] = mapped_column(default=1, server_default="1")
    """Its share when tenants take turns, relative to the others'."""
    max_open_jobs: Mapped[int | None]
    """Limits; where one is None, that of the settings holds, which is also that of all tenants together."""
    max_stored_jobs: Mapped[int | None]
    max_stored_bytes: Mapped[int | None]
    max_requests: Mapped[int | None]
    """Jobs that it may create in a minute."""
    max_candidates: Mapped[int | None]
    """Candidates that it may ask for in a day (UTC)."""
    max_batch_slots: Mapped[int | None]
    """Candidates of its batch jobs in the queues at a time."""
    max_prompt: Mapped[int | None]
    """Characters of a prompt."""
    max_retention: Mapped[int | None]
    """Seconds for which a job may be kept after its end."""
    open_jobs: Mapped[int] = mapped_column(default=0, server_default="0")
    open_batch_jobs: Mapped[int] = mapped_column(default=0, server_default="0")
    """The open jobs that are not interactive; they count in `open_jobs` too."""
    stored_jobs: Mapped[int] = mapped_column(default=0, server_default="0")
    """Open and ended jobs."""
    stored_bytes: Mapped[int] = mapped_column(default=0, server_default="0")
    """Sum of `Job.size`."""
    requests_until: Mapped[int] = mapped_column(default=0, server_default="0")
    """Time until which its requests have used the rate; see `smalti.services.gateway.jobs.admission`."""
    day: Mapped[int] = mapped_column(default=0, server_default="0")
    """The beginning of the day (UTC) of its last job."""
    day_candidates: Mapped[int] = mapped_column(default=0, server_default="0")
    """Candidates that it has asked for on that day."""


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
