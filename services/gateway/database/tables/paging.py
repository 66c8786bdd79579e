"""Pages of a list, ordered by the time of creation."""

from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import Select, tuple_

from smalti.services.gateway.database.tables.batches import Batch
from smalti.services.gateway.database.tables.files import StoredFile
from smalti.services.gateway.database.tables.jobs import Job

Listed = TypeVar("Listed", Job, Batch, StoredFile)


@dataclass(frozen=True)
class PageCursor:
    """The last row of a page; the next page begins after it."""

    created: int
    id: str


def page_of(
    query: Select[Listed],
    table: type[Listed],
    *,
    after: PageCursor | None,
    limit: int,
    oldest_first: bool = False,
) -> Select[Listed]:
    """Returns the query of a page, the newest first unless `oldest_first` is set.

    Args:
        query: selects the rows of the list.
        table: their table.
        after: the last row of the previous page; None for the first page.
        limit: maximum number of rows.
        oldest_first: whether the oldest come first.
    """
    columns = table.created, table.id
    query = query.order_by(*(each if oldest_first else each.desc() for each in columns)).limit(limit)
    if after is None:
        return query
    position, last = tuple_(*columns), (after.created, after.id)
    return query.where(position > last if oldest_first else position < last)
