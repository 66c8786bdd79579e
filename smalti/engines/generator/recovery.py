"""Finds the request over which steps fail, by bisection.

Tokens follow from seed, candidate and position alone. So the requests that were in a failed batch can be generated
again from their first tokens, in parts, and nothing changes for those that are not to blame but the time.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from smalti.engines.generator.requests import GenerationHandle


@dataclass(frozen=True, kw_only=True)
class Interrupted:
    """What a failed batch held of one request."""

    handle: GenerationHandle
    positions: dict[int, int]
    """By index of the candidate, the position at which the failed step began."""


class Bisection:
    """Which of the requests of a failed batch run, and which wait aside. Not thread-safe.

    A request is guilty if a step fails again while it is the only one that can be to blame. Those that get past the
    step at which they were interrupted are not to blame, and stay in the batch.
    """

    def __init__(self) -> None:
        self._on_trial: dict[GenerationHandle, dict[int, int]] = {}
        self._cleared: set[GenerationHandle] = set()
        self._aside: list[list[Interrupted]] = []

    @property
    def active(self) -> bool:
        """Whether a guilty request is looked for; new requests would only be drawn into it."""
        return bool(self._on_trial or self._aside)

    def failed(self, members: Iterable[Interrupted]) -> tuple[list[Interrupted], GenerationHandle | None]:
        """Takes the requests of a failed batch; returns those to run next, and the guilty one if it is known."""
        members = list(members)
        suspects = [member for member in members if member.handle not in self._cleared]
        if not suspects:  # The error did not come from a request alone, so the search begins again.
            suspects = members
            self._cleared.clear()
        rest = [member for member in members if member not in suspects]
        if len(suspects) == 1 and suspects[0].handle in self._on_trial:
            self._on_trial.clear()
            return rest + self.next_trial(), suspects[0].handle
        self._aside.append(suspects)
        return rest + self.next_trial(), None

    def next_trial(self) -> list[Interrupted]:
        """Takes half of the last requests that were put aside; they are on trial from now on."""
        self._on_trial.clear()
        if not self._aside:
            self._cleared.clear()
            return []
        group = self._aside.pop()
        half = (len(group) + 1) // 2
        if group[half:]:
            self._aside.append(group[half:])
        self._on_trial = {member.handle: member.positions for member in group[:half]}
        return group[:half]

    def advanced(self, running: dict[GenerationHandle, dict[int, int]]) -> list[Interrupted]:
        """Takes what the batch holds after a step that succeeded; returns the requests to add to it.

        Args:
            running: the position of each candidate in the batch, by request and index of the candidate.
        """
        for handle, interrupted in self._on_trial.items():
            now = running.get(handle, {})
            if any(now.get(candidate, before + 1) <= before for candidate, before in interrupted.items()):
                return []
        self._cleared.update(self._on_trial)
        return self.next_trial()
