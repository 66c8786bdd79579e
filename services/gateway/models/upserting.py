"""Adding rows, or changing those that are there."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from smalti.services.gateway.database.tables import Revision, Worker


def upsert(
    session: Session,
    table: type[Revision | Worker],
    rows: Sequence[Mapping[str, Any]],
    changed: Sequence[str],
    *,
    newer: str | None = None,
) -> None:
    """Adds rows; where one with the same primary key exists, some of its columns are changed.

    Args:
        session: a writing transaction.
        table: the table.
        rows: the rows; no two have the same key.
        changed: the columns that are changed.
        newer: a column; only rows that have less in it are changed.
    """
    insert = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    statement = insert(table).values([dict(row) for row in rows])
    condition: ColumnElement[bool] | None = None
    if newer is not None:
        condition = getattr(table, newer) < statement.excluded[newer]
    key = [column.name for column in table.__table__.primary_key]
    session.execute(
        statement.on_conflict_do_update(
            index_elements=key, set_={name: statement.excluded[name] for name in changed}, where=condition
        )
    )
