"""The revisions as an operator sees them: who serves them, how much work they have, and whether they are retired."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from smalti.errors import InvalidInputError
from smalti.messages import Stage
from smalti.services.gateway.database.tables import IS_OPEN, Job, Revision
from smalti.services.gateway.models.card import STAGES
from smalti.services.gateway.models.fleet import live_workers


@dataclass(frozen=True, kw_only=True)
class ListedRevision:
    """A revision in the list."""

    model: str
    revision: str
    slots: int
    """Slots of its live generators."""
    missing: tuple[Stage, ...]
    """The stages for which no worker has said hello lately."""
    open_jobs: int
    last_seen: int
    """Time in microseconds at which it was last known to be there."""
    retired: int | None
    """Time in microseconds since which it is retired; None if it is not."""


def list_revisions(session: Session, now: int) -> list[ListedRevision]:
    """Returns the revisions, by model, the newest first.

    Args:
        session: a transaction.
        now: the time in microseconds.
    """
    workers = live_workers(session, now)
    jobs = select(Job.revision, func.count().label("jobs")).where(IS_OPEN).group_by(Job.revision)
    open_jobs = {row.revision: int(row.jobs) for row in session.execute(jobs)}
    rows = session.scalars(
        select(Revision).order_by(Revision.model, Revision.first_seen.desc(), Revision.revision)
    )
    listed = []
    for row in rows:
        served = {stage: workers.get((stage, row.parts.get(stage.value, ""))) for stage in STAGES}
        generators = served[Stage.GENERATE]
        listed.append(
            ListedRevision(
                model=row.model,
                revision=row.revision,
                slots=generators.slots if generators else 0,
                missing=tuple(stage for stage, found in served.items() if found is None),
                open_jobs=open_jobs.get(row.revision, 0),
                last_seen=row.last_seen,
                retired=row.retired,
            )
        )
    return listed


def retire(session: Session, digits: str, now: int | None) -> str:
    """Sets whether new jobs get a revision only if they name it, or if nothing else can draw them.

    Args:
        session: a writing transaction.
        digits: the revision, or as many of its first digits as are needed to tell it from the others.
        now: the time in microseconds; None takes the retirement back.

    Returns:
        The revision.

    Raises:
        InvalidInputError: no revision, or several, begin so.
    """
    known: Sequence[str] = session.scalars(select(Revision.revision)).all()
    wanted = digits.removeprefix("sha256:")
    found = [each for each in known if wanted and each.removeprefix("sha256:").startswith(wanted)]
    if len(found) != 1:
        problem = f"{len(found)} revisions begin" if found else "no revision begins"
        raise InvalidInputError("REVISION", f"{problem} with {digits!r:.80}")
    session.execute(update(Revision).where(Revision.revision == found[0]).values(retired=now))
    return found[0]
