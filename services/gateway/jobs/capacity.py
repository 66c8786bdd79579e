"""Whether there is room for a job, and what a refusal says: the limit, what is left of it, and when to come again.

The statement that admits a job decides (`smalti.services.gateway.jobs.admission`). Here it is found out which limit was
in the way.

Requests per minute are a bucket that holds the limit and fills evenly (the generic cell rate algorithm, ITU-T I.371):
`Tenant.requests_until` is the time at which it is full again, so one number is enough. The library `limits` keeps its
counts in Redis, Memcached or MongoDB, and cannot count in the statement that stores the job.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from smalti.errors import InvalidInputError, OverloadedError, QuotaExceededError
from smalti.services.gateway.database.clock import to_seconds
from smalti.services.gateway.database.tables import Job
from smalti.services.gateway.jobs.tenants import DAY, MINUTE, Limits, Usage, day_of, usage_of

MIN_RETRY_SECONDS: Final = 1.0
MAX_RETRY_SECONDS: Final = 60.0
RECENT: Final = MINUTE
"""The rate at which jobs ended within this time predicts when there is room again."""


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What a job asks for."""

    tenant: str
    now: int
    """The time in microseconds."""
    candidates: int
    prompt: int
    """Characters of the prompt."""
    retention: float | None
    """Time for which it is to be kept, in seconds; None for as long as it may be."""

    @property
    def day(self) -> int:
        """The beginning of the day, in UTC."""
        return day_of(self.now)


def check_capacity(session: Session, limits: Limits, demand: Demand) -> Usage:
    """Returns what a tenant has, if there is room for another job.

    Raises:
        QuotaExceededError: the tenant has used up a limit of its own.
        OverloadedError: all tenants together have too many jobs open, or stored.
        InvalidInputError: the job is greater than any job of the tenant may be, or there is no such tenant.
    """
    usage = usage_of(session, demand.tenant, limits)
    _check_size(usage, demand)
    _check_stored(usage, limits)
    _check_open(session, usage, limits, demand.now)
    _check_requests(usage, demand)
    _check_candidates(usage, demand)
    return usage


def _check_size(usage: Usage, demand: Demand) -> None:
    if demand.prompt > usage.max_prompt:
        raise InvalidInputError(
            "prompt",
            f"must have at most {usage.max_prompt} characters for tenant {usage.tenant}, got {demand.prompt}",
        )
    if demand.retention is not None and demand.retention > usage.max_retention:
        raise InvalidInputError(
            "retention",
            f"must be at most {usage.max_retention} s for tenant {usage.tenant}, got {demand.retention:g} s",
        )
    if demand.candidates > usage.max_candidates:
        raise InvalidInputError(
            "candidates",
            f"must not be greater than {usage.max_candidates}, which tenant {usage.tenant} may ask for in a day, "
            f"got {demand.candidates}",
        )


def _check_stored(usage: Usage, limits: Limits) -> None:
    remedy = "delete some, or try again later"
    if usage.all_stored_jobs >= limits.stored_jobs or usage.all_stored_bytes >= limits.stored_bytes:
        problem = f"too many jobs are stored ({usage.all_stored_jobs}); {remedy}"
        raise OverloadedError(problem, MAX_RETRY_SECONDS)
    for name, unit in (("stored_jobs", "jobs"), ("stored_bytes", "bytes of them")):
        limit = getattr(usage, f"max_{name}")
        if getattr(usage, name) >= limit:
            problem = (
                f"too many jobs are stored ({usage.stored_jobs}): tenant {usage.tenant} may have {limit} {unit}; "
                f"{remedy}"
            )
            raise QuotaExceededError(problem, MAX_RETRY_SECONDS, quota=name, limit=limit)


def _check_open(session: Session, usage: Usage, limits: Limits, now: int) -> None:
    of_all = usage.all_open_jobs >= limits.open_jobs
    if not of_all and usage.open_jobs < usage.max_open_jobs:
        return
    ended = select(func.count()).select_from(Job).where(Job.ended >= now - RECENT)
    if not of_all:
        ended = ended.where(Job.tenant == usage.tenant)
    number = session.scalar(ended) or 0
    # There is room again when a job ends. Without a recent one the delay is a guess.
    seconds = to_seconds(RECENT) / number if number else MAX_RETRY_SECONDS / 6
    seconds = min(max(seconds, MIN_RETRY_SECONDS), MAX_RETRY_SECONDS)
    if of_all:
        problem = f"too many open jobs ({usage.all_open_jobs}); try again in {seconds:.0f} s"
        raise OverloadedError(problem, seconds)
    problem = (
        f"too many open jobs ({usage.open_jobs}): tenant {usage.tenant} may have {usage.max_open_jobs}; "
        f"try again in {seconds:.0f} s"
    )
    raise QuotaExceededError(problem, seconds, quota="open_jobs", limit=usage.max_open_jobs)


def _check_requests(usage: Usage, demand: Demand) -> None:
    cost = MINUTE // usage.max_requests
    wait = max(usage.requests_until, demand.now) + cost - demand.now - MINUTE
    if wait > 0:
        seconds = to_seconds(wait)
        raise QuotaExceededError(
            f"tenant {usage.tenant} may create {usage.max_requests} jobs a minute; try again in {in_words(seconds)}",
            seconds,
            quota="requests_per_minute",
            limit=usage.max_requests,
        )


def _check_candidates(usage: Usage, demand: Demand) -> None:
    used = usage.day_candidates if usage.day == demand.day else 0
    left = max(0, usage.max_candidates - used)
    if demand.candidates > left:
        seconds = to_seconds(demand.day + DAY - demand.now)
        raise QuotaExceededError(
            f"tenant {usage.tenant} may ask for {usage.max_candidates} candidates a day; {left} are left today, and "
            f"the job has {demand.candidates}; try again in {in_words(seconds)}, at 00:00 UTC",
            seconds,
            quota="candidates_per_day",
            limit=usage.max_candidates,
            left=left,
        )


def in_words(seconds: float) -> str:
    """Returns a time to wait for people, rounded up: "12 s", "3 min", or "5 h 12 min"."""
    whole = timedelta(seconds=int(-(-seconds // 1)))
    if whole < timedelta(minutes=2):
        return f"{max(1, int(whole.total_seconds()))} s"
    minutes = -(-int(whole.total_seconds()) // 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
