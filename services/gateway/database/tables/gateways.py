"""The gateways that run, and which of them can use the schema."""

from sqlalchemy import (
    String,
)
from sqlalchemy.orm import Mapped, mapped_column

from smalti.services.gateway.database.tables.base import Base


class GatewayProcess(Base):
    """A gateway that runs. It says so every second; see `smalti.services.gateway.database.presence`."""

    __tablename__ = "gateways"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    number: Mapped[int]
    """Key of the advisory lock that its connection holds while it runs."""
    address: Mapped[str] = mapped_column(String(255))
    """Where its calls are answered, `HOST:PORT`, as far as it knows."""
    version: Mapped[str] = mapped_column(String(64))
    oldest_schema: Mapped[str] = mapped_column(String(32))
    """Range of the schemas that it can use."""
    newest_schema: Mapped[str] = mapped_column(String(32))
    seen_at: Mapped[int]
    """Time of its last sign of life, by the clock of the database."""


class SchemaCompatibility(Base):
    """One row: which gateways can use the schema. A migration that older gateways cannot bear raises `oldest`."""

    __tablename__ = "schema_compatibility"

    oldest: Mapped[str] = mapped_column(String(32), primary_key=True)
    """The newest schema that the oldest of these gateways knows."""
