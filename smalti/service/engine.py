"""The interface of an engine for the shell of a service."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class Engine(Protocol):
    """The engine of a service."""

    slots: int
    """Maximum number of computations at the same time."""

    @property
    def active(self) -> int:
        """Number of computations in progress."""
        ...

    @property
    def waiting(self) -> int:
        """Number of computations that wait."""
        ...

    @property
    def healthy(self) -> bool:
        """Whether the engine takes work; must not block."""
        ...

    @property
    def failure(self) -> BaseException | None:
        """Why the engine does not take work; None while it does."""
        ...

    def close(self) -> None:
        """Stops the engine; unfinished computations fail."""
        ...
