"""Pages of lists."""

from collections.abc import AsyncIterator
from typing import Generic, Literal, Self, TypeVar

from pydantic import BaseModel


class Listed(BaseModel):
    """What can be listed."""

    id: str


Item = TypeVar("Item", bound=Listed)


class Page(BaseModel, Generic[Item]):
    """A page of a list."""

    object: Literal["list"] = "list"
    data: list[Item]
    first_id: str | None
    last_id: str | None
    has_more: bool

    @classmethod
    async def of(cls, items: AsyncIterator[Item], limit: int) -> Self:
        """Returns the first items as a page."""
        found: list[Item] = []
        has_more = False
        async for item in items:
            if len(found) == limit:
                has_more = True
                break
            found.append(item)
        first, last = (found[0].id, found[-1].id) if found else (None, None)
        return cls(data=found, first_id=first, last_id=last, has_more=has_more)
