"""In which order chunks that wait are sent."""

from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar

Item = TypeVar("Item")
T = TypeVar("T")


class Waiting(Protocol[T]):
    """What waits to be sent."""

    def add(self, tenant: Hashable, item: T) -> None:
        """Adds an item of a tenant."""

    def take(self) -> T:
        """Removes the next item and returns it; raises `IndexError` if there is none."""
        ...

    def __len__(self) -> int: ...


class FirstCome(Generic[Item]):
    """First come, first served, whoever the tenant is."""

    def __init__(self) -> None:
        """Starts empty."""
        self._items: deque[Item] = deque()

    def add(self, tenant: Hashable, item: Item) -> None:  # noqa: D102
        self._items.append(item)

    def take(self) -> Item:  # noqa: D102
        return self._items.popleft()

    def __len__(self) -> int:
        return len(self._items)


class TenantTurns(Generic[Item]):
    """Deficit round robin (Shreedhar and Varghese, 1995): tenants with work take turns of the same size."""

    def __init__(self, turn: int, size: Callable[[Item], int]) -> None:
        """Starts empty.

        Args:
            turn: what a tenant may take in a turn, in units of `size`; what it does not use it keeps while it has work.
            size: size of an item.
        """
        self._turn = turn
        self._size = size
        self._items: dict[Hashable, deque[Item]] = {}
        self._order: deque[Hashable] = deque()
        self._left: dict[Hashable, int] = {}
        self._count = 0

    def add(self, tenant: Hashable, item: Item) -> None:  # noqa: D102
        if tenant not in self._items:
            self._items[tenant] = deque()
            self._order.append(tenant)
            self._left[tenant] = self._turn if len(self._order) == 1 else 0
        self._items[tenant].append(item)
        self._count += 1

    def take(self) -> Item:  # noqa: D102
        while self._left[self._order[0]] < self._size(self._items[self._order[0]][0]):
            self._order.rotate(-1)
            self._left[self._order[0]] += self._turn
        tenant = self._order[0]
        items = self._items[tenant]
        item = items.popleft()
        self._left[tenant] -= self._size(item)
        self._count -= 1
        if not items:
            # What is left of its turn is lost, or a tenant could save turns while it has no work.
            del self._items[tenant], self._left[tenant]
            self._order.popleft()
            if self._order:
                self._left[self._order[0]] += self._turn
        return item

    def __len__(self) -> int:
        return self._count
