"""The outbox: takes notices that are due, has them sent, and notes what became of them.

A notice is claimed by setting its next try to when the claim expires, and by counting the try. So another gateway, or
this one after a restart, tries again if nothing is heard, and what comes from a claim that has expired changes nothing.
A receiver may get a notice twice, which it tells by its id.
"""

import asyncio
import logging
import random
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from queue import Empty, SimpleQueue
from typing import Any, Final

from sqlalchemy import ColumnElement, Select, delete, exists, func, select, update
from sqlalchemy.orm import Session, aliased

from smalti.services.gateway.database.clock import Clock, to_microseconds
from smalti.services.gateway.database.connection import Database
from smalti.services.gateway.database.tables import Delivery, Webhook
from smalti.services.gateway.webhooks.addresses import host_of
from smalti.services.gateway.webhooks.sending import Answer, Sender, SendingError
from smalti.services.gateway.webhooks.settings import WebhookSettings
from smalti.telemetry import audit
from smalti.webhooks import signed_headers

log = logging.getLogger(__name__)

DELAYS: Final = (5.0, 30.0, 120.0, 600.0, 1800.0, 3600.0, 7200.0, 14_400.0, 21_600.0, 28_800.0)
"""Seconds before the second try, the third, and so on; together they are almost a day."""
MAX_AGE_SECONDS: Final = 24 * 3600.0
MAX_RETRY_AFTER_SECONDS: Final = 3600.0
CLAIM_SECONDS: Final = 30.0
"""What a claim is longer than the time for an answer."""
MAX_READ: Final = 500
"""Notices of a tenant that are looked at together."""
STOP_SECONDS: Final = 2.0


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """What became of a try."""

    delivery: Delivery
    problem: str | None
    """Why it was not taken; None if it was."""
    is_final: bool = False
    """Whether it is not to be tried again."""
    retry_after: float | None = None


class Deliveries:
    """Sends what is due. `send_due` is called by one thread; requests run in an event loop of their own."""

    def __init__(
        self,
        database: Database,
        *,
        clock: Clock,
        settings: WebhookSettings,
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        """Sends nothing yet.

        Args:
            database: the database, whose tables must exist.
            clock: returns the time in seconds, by the database's clock.
            settings: limits.
            ended: called in another thread when a try has ended, so that `send_due` is called soon.
        """
        self._database = database
        self._clock = clock
        self._settings = settings
        self._ended = ended
        self._outcomes: SimpleQueue[_Outcome] = SimpleQueue()
        self._flying: dict[str, Delivery] = {}
        self._served: dict[str, int] = {}
        """When tenants with work were served last, as a number that grows."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._sender: Sender | None = None
        self._sending: set[asyncio.Task[Any]] = set()
        """The tasks of `_send`; only the event loop may use it."""

    @property
    def flying(self) -> int:
        """Number of notices that are on their way."""
        return len(self._flying)

    def send_due(self) -> int:
        """Notes what has become of tries, and begins to send what is due; returns how many.

        Raises:
            DatabaseUnavailableError: the database does not answer.
        """
        self._note_outcomes()
        free = self._settings.together - len(self._flying)
        claimed = self._claim(free) if free > 0 and self._has_due() else []
        for delivery, secrets in claimed:
            self._flying[delivery.id] = delivery
            asyncio.run_coroutine_threadsafe(self._send(delivery, secrets), self._running_loop())
        return len(claimed)

    def stop(self) -> None:
        """Ends what is on its way; it is sent again once its claim has expired."""
        loop, self._loop = self._loop, None
        if loop is None:
            return

        async def end() -> None:
            # Not the tasks that anyio has made for these: cancelled before its first step, one leaves a coroutine that
            # was never awaited. Each of ours ends its own.
            tasks = list(self._sending)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._sender is not None:
                await self._sender.close()

        try:
            asyncio.run_coroutine_threadsafe(end(), loop).result(STOP_SECONDS)
        except TimeoutError:
            log.warning("notices that are on their way could not be ended")
        loop.call_soon_threadsafe(loop.stop)
        if self._thread is not None:
            self._thread.join(STOP_SECONDS)
        self._sender = None
        self._flying.clear()

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(
                target=_run, args=(self._loop,), name="webhooks loop", daemon=True
            )
            self._thread.start()
        return self._loop

    def _has_due(self) -> bool:
        query = select(Delivery.id).where(Delivery.due <= to_microseconds(self._clock())).limit(1)
        with self._database.read() as session:
            return session.scalar(query) is not None

    def _claim(self, free: int) -> list[tuple[Delivery, list[str]]]:
        """Claims notices that are due, so that nobody holds up others; returns them with the secrets that sign them."""
        now = to_microseconds(self._clock())
        until = to_microseconds(self._clock() + self._settings.timeout + CLAIM_SECONDS)
        with self._database.write() as session:
            chosen, late = self._choose(session, now, free)
            for delivery in chosen:
                delivery.due = until
                delivery.tries += 1
            session.execute(delete(Delivery).where(Delivery.id.in_([each.id for each in late])))
            tenants = {delivery.tenant for delivery in chosen}
            webhooks = {
                each.tenant: each
                for each in session.scalars(select(Webhook).where(Webhook.tenant.in_(tenants)))
            }
        for each in late:
            _report("webhook given up", each, each.problem or "it has waited for a day, and was never tried")
        return [(delivery, _secrets(webhooks.get(delivery.tenant), now)) for delivery in chosen]

    def _choose(self, session: Session, now: int, free: int) -> tuple[list[Delivery], list[Any]]:
        """Returns notices to send, and rows of those that are too old.

        Each tenant's are read apart, and who was served longest ago comes first: however many of some wait for hosts
        that are slow, those of others are found.
        """
        of_tenant = Counter(each.tenant for each in self._flying.values())
        of_host = Counter(host_of(each.url) for each in self._flying.values())
        most_of_tenant = max(1, self._settings.together // 4)
        most_of_host = max(1, self._settings.together // 8)
        chosen: list[str] = []
        late: list[Any] = []
        tenants = session.scalars(_tenants_with_work(now)).all()
        self._served = {each: self._served.get(each, 0) for each in tenants}
        for tenant in sorted(tenants, key=self._served.__getitem__):
            if of_tenant[tenant] >= most_of_tenant:
                continue
            self._served[tenant] = max(self._served.values()) + 1
            for each in session.execute(_due(tenant, now)):
                host = host_of(each.url)
                if each.created + to_microseconds(MAX_AGE_SECONDS) < now:
                    late.append(each)
                elif of_tenant[tenant] < most_of_tenant and of_host[host] < most_of_host:
                    of_tenant[tenant] += 1
                    of_host[host] += 1
                    chosen.append(each.id)
                if len(chosen) == free:
                    break
            if len(chosen) == free:
                break
        # Another gateway may claim some of them at the same time.
        locked = select(Delivery).where(Delivery.id.in_(chosen), Delivery.due <= now)
        return list(session.scalars(locked.with_for_update(skip_locked=True))), late

    async def _send(self, delivery: Delivery, secrets: list[str]) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._sending.add(task)
        try:
            outcome = await self._try(delivery, secrets)
        except Exception as error:
            log.exception("a notice could not be sent", extra={"job": delivery.subject})
            outcome = _Outcome(delivery=delivery, problem=f"internal error ({type(error).__name__})")
        finally:
            self._sending.remove(task)
        self._outcomes.put(outcome)
        self._ended()

    async def _try(self, delivery: Delivery, secrets: list[str]) -> _Outcome:
        if not secrets:
            return _Outcome(delivery=delivery, problem="the tenant has no secret any more", is_final=True)
        if self._sender is None:
            self._sender = Sender(self._settings)
        body = delivery.body.encode()
        headers = signed_headers(secrets, notice_id=delivery.id, timestamp=int(self._clock()), body=body)
        try:
            answer = await self._sender.post(delivery.url, headers, body)
        except SendingError as error:
            return _Outcome(delivery=delivery, problem=str(error))
        return _outcome_of(delivery, answer)

    def _note_outcomes(self) -> None:
        outcomes = []
        while True:
            try:
                outcomes.append(self._outcomes.get_nowait())
            except Empty:
                break
        if not outcomes:
            return
        now = self._clock()
        try:
            with self._database.write() as session:
                for outcome in outcomes:
                    self._note(session, outcome, now)
        except BaseException:
            for outcome in outcomes:
                self._outcomes.put(outcome)
            raise
        for outcome in outcomes:
            self._flying.pop(outcome.delivery.id, None)
            self._tell(outcome, now)

    def _note(self, session: Session, outcome: _Outcome, now: float) -> None:
        delivery = outcome.delivery
        # Another gateway may have claimed it meanwhile.
        own = Delivery.id == delivery.id, Delivery.tries == delivery.tries
        if outcome.problem is None or self._is_given_up(outcome, now):
            session.execute(delete(Delivery).where(*own))
            return
        due = to_microseconds(now + _delay(outcome))
        session.execute(update(Delivery).where(*own).values(due=due, problem=outcome.problem))

    def _is_given_up(self, outcome: _Outcome, now: float) -> bool:
        too_late = outcome.delivery.created + to_microseconds(MAX_AGE_SECONDS)
        return outcome.is_final or to_microseconds(now + _delay(outcome)) > too_late

    def _tell(self, outcome: _Outcome, now: float) -> None:
        delivery = outcome.delivery
        if outcome.problem is None:
            event = "webhook delivered"
        elif self._is_given_up(outcome, now):
            event = "webhook given up"
        else:
            log.info("a webhook is tried again: %s", outcome.problem, extra={"job": delivery.subject})
            return
        _report(event, delivery, outcome.problem)


def _run(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


def _report(event: str, delivery: Any, why: str | None) -> None:
    """Writes a line about a notice, or its row, to the audit log."""
    audit.write(
        event,
        tenant=delivery.tenant,
        subject=delivery.subject,
        notice=delivery.id,
        host=host_of(delivery.url),
        tries=delivery.tries,
        why=why,
    )


def _tenants_with_work(now: int) -> Select[Any]:
    """Returns the tenants of which notices are due, the one that has waited longest first."""
    each = select(func.min(Delivery.tenant).label("tenant")).cte("each_tenant", recursive=True)
    following = select(func.min(Delivery.tenant)).where(Delivery.tenant > each.c.tenant).scalar_subquery()
    each = each.union_all(select(following).where(each.c.tenant.is_not(None)))
    first = select(func.min(Delivery.due)).where(Delivery.tenant == each.c.tenant).scalar_subquery()
    return select(each.c.tenant).where(first <= now).order_by(first)


def _due(tenant: str, now: int) -> Select[Any]:
    """Returns what is due of a tenant, without the bodies."""
    columns: Any = (
        *(Delivery.id, Delivery.tenant, Delivery.subject, Delivery.url),
        *(Delivery.created, Delivery.tries, Delivery.problem),
    )
    is_due = Delivery.tenant == tenant, Delivery.due <= now, _is_first()
    return select(*columns).where(*is_due).order_by(Delivery.due).limit(MAX_READ)


def _is_first() -> ColumnElement[bool]:
    """Returns the condition that no earlier notice of the same subject waits for the same receiver."""
    earlier = aliased(Delivery)
    return ~exists().where(
        earlier.subject == Delivery.subject, earlier.version < Delivery.version, earlier.url == Delivery.url
    )


def _secrets(webhook: Webhook | None, now: int) -> list[str]:
    if webhook is None:
        return []
    former = webhook.former_secret if (webhook.former_until or 0) > now else None
    return [webhook.secret, former] if former else [webhook.secret]


def _outcome_of(delivery: Delivery, answer: Answer) -> _Outcome:
    if 200 <= answer.status < 300:
        return _Outcome(delivery=delivery, problem=None)
    return _Outcome(
        delivery=delivery,
        problem=f"the receiver answers {answer.status}",
        is_final=answer.status == HTTPStatus.GONE,
        retry_after=answer.retry_after,
    )


def _delay(outcome: _Outcome) -> float:
    """Returns the seconds until the next try, the same for the same try."""
    tries = outcome.delivery.tries
    if tries > len(DELAYS):
        return MAX_AGE_SECONDS
    # Receivers that were away are not asked by all at once.
    scatter = random.Random(f"{outcome.delivery.id} {tries}").uniform(0.9, 1.1)
    asked = min(outcome.retry_after or 0.0, MAX_RETRY_AFTER_SECONDS)
    return max(DELAYS[tries - 1] * scatter, asked)
