"""How fast batches are, how long they still take, and what they cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from smalti.services.gateway.database.clock import MICROSECONDS, to_seconds
from smalti.services.gateway.database.tables import Batch, BatchState

RECENT: Final = 5
"""Earlier batches that an estimate is made from."""
IDLE_SECONDS: Final = 900.0
"""Time without a shard after which the rate is not known any more."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a batch costs."""

    candidates: int
    pictures: int
    size: int
    """Bytes; 0 if not known."""
    seconds: float | None
    """Time that it takes, if nobody else draws; None if not known."""


def rate_of(batch: Batch, now: int) -> float:
    """Returns how many prompts of a batch end in a second, over the last minutes; 0 if not known."""
    rates = batch.rates or []
    if len(rates) < 2 or now - rates[-1][0] > IDLE_SECONDS * MICROSECONDS:
        return 0.0
    first = rates[0]
    # Up to now, so that a batch that stands still becomes slower.
    seconds = to_seconds(max(now, rates[-1][0]) - first[0])
    return (rates[-1][1] - first[1]) / seconds if seconds > 0 else 0.0


def seconds_left(batch: Batch, now: int) -> float | None:
    """Returns the time that a batch still takes at its rate; None if not known."""
    rate = rate_of(batch, now)
    if batch.state is not BatchState.RUNNING or rate <= 0:
        return None
    return max(0, batch.prompts - batch.invalid - batch.drawn - batch.failed) / rate


class Estimates:
    """What batches cost, from earlier ones of their revisions, which one transaction reads once."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._earlier: dict[str, Sequence[Batch]] = {}
        """The last batches by revision."""

    def of(self, batch: Batch) -> Estimate:
        """Returns what a planned batch costs."""
        if batch.revision not in self._earlier:
            self._earlier[batch.revision] = self._read(batch.revision)
        earlier = [each for each in self._earlier[batch.revision] if each.id != batch.id][:RECENT]
        picture_format = _format(batch)
        alike = [each for each in earlier if _format(each) == picture_format]
        pictures, size = sum(each.pictures for each in alike), sum(each.size for each in alike)
        seconds = sum(to_seconds((each.finishing or 0) - (each.started or 0)) for each in earlier)
        generated = sum(each.candidates_generated for each in earlier)
        return Estimate(
            candidates=batch.candidates,
            pictures=batch.pictures_planned,
            size=round(batch.pictures_planned * size / pictures) if pictures else 0,
            seconds=batch.candidates * seconds / generated if generated and seconds > 0 else None,
        )

    def _read(self, revision: str) -> Sequence[Batch]:
        """Reads one more than is needed: an estimate leaves out the batch itself."""
        succeeded = Batch.state == BatchState.SUCCEEDED, Batch.pictures > 0
        query = select(Batch).where(Batch.revision == revision, *succeeded)
        return self._session.scalars(query.order_by(Batch.created.desc()).limit(RECENT + 1)).all()


def _format(batch: Batch) -> object:
    return batch.parameters.get("picture_format") if isinstance(batch.parameters, dict) else None
