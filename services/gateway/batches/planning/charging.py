"""What a batch counts against the limits of its tenant, once it is planned."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from smalti.errors import QuotaExceededError
from smalti.services.gateway.database.clock import to_microseconds, to_seconds
from smalti.services.gateway.database.tables import Batch, DailyUsage, Tenant
from smalti.services.gateway.jobs.capacity import in_words
from smalti.services.gateway.jobs.context import GatewayContext
from smalti.services.gateway.jobs.tenants import DAY, Limits, day_of, own


def charge(session: Session, context: GatewayContext, batch: Batch, now: float) -> None:
    """Counts the candidates of a batch against what its tenant may ask for in a day.

    Raises:
        QuotaExceededError: that would be too many; nothing is counted.
    """
    tenant = session.scalars(select(Tenant).where(Tenant.id == batch.tenant).with_for_update()).one_or_none()
    if tenant is None:
        return
    moment = to_microseconds(now)
    today = day_of(moment)
    used = tenant.day_candidates if tenant.day == today else 0
    limit = own(tenant.max_candidates, Limits.load(context.settings).candidates)
    if used + batch.candidates > limit:
        left = max(0, limit - used)
        seconds = to_seconds(today + DAY - moment)
        raise QuotaExceededError(
            f"tenant {batch.tenant} may ask for {limit} candidates a day; {left} are left today, and the batch has "
            f"{batch.candidates}; make it smaller, or try again in {in_words(seconds)}, at 00:00 UTC",
            seconds,
            quota="candidates_per_day",
            limit=limit,
            left=left,
        )
    tenant.day, tenant.day_candidates = today, used + batch.candidates
    usage = session.get(DailyUsage, (batch.tenant, today))
    if usage is None:
        session.add(DailyUsage(tenant=batch.tenant, day=today, requests=1, candidates=batch.candidates))
    else:
        usage.requests += 1
        usage.candidates += batch.candidates


def max_prompt_of(context: GatewayContext, tenant: str) -> int:
    """Returns how many characters a prompt of a tenant may have."""
    with context.database.read() as session:
        max_prompt = session.scalar(select(Tenant.max_prompt).where(Tenant.id == tenant))
    return own(max_prompt, Limits.load(context.settings).prompt)
