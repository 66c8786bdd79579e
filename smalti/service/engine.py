"""The engine behind a service, as the shell of the service sees it."""

from typing import Protocol


class Engine(Protocol):
    """What computes behind a service."""

    slots: int
    """How many pieces of work it does at the same time."""

    @property
    def active(self) -> int:
        """How many it does."""
        ...

    @property
    def waiting(self) -> int:
        """How many wait for it."""
        ...

    @property
    def healthy(self) -> bool:
        """Whether it takes work; must not wait."""
        ...

    @property
    def failure(self) -> BaseException | None:
        """Why it does not."""
        ...

    def close(self) -> None:
        """Ends it; what it has not finished fails."""
        ...
