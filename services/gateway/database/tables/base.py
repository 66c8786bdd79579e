"""What all tables share."""

from typing import Any, ClassVar, Final

from sqlalchemy import (
    BigInteger,
    Index,
    text,
)
from sqlalchemy.orm import DeclarativeBase

from smalti.services.gateway.database.columns import ReadableJson

MAX_ID_LENGTH: Final = 64
MAX_REVISION_LENGTH: Final = 200
DEFAULT_TENANT: Final = "default"
"""The tenant of callers without one, and of all jobs of older versions. It always exists."""


def partial_index(name: str, *columns: str, where: str) -> Index:
    """Returns an index of the rows for which a condition holds."""
    return Index(name, *columns, sqlite_where=text(where), postgresql_where=text(where))


class Base(DeclarativeBase):
    """Base class of the tables."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {
        int: BigInteger,
        dict[str, Any]: ReadableJson(none_as_null=True),
        list[Any]: ReadableJson,
    }
